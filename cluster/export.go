package cluster

import (
	"encoding/json"
	"fmt"
)

// Inventory is the nodes as doppel writes them out and reads them in again.
type Inventory struct {
	Format int    `json:"doppel_nodes"` // 1
	Nodes  []Node `json:"nodes"`
}

const inventoryFormat = 1

// Export writes out the inventory. Installs and updates stay behind: they are of this
// moment, and the nonce of one's boot is nobody else's business.
func (c *Cluster) Export() Inventory {
	nodes := c.Nodes()
	for i := range nodes {
		nodes[i].Install, nodes[i].Update, nodes[i].Parted, nodes[i].Reason = nil, nil, nil, ""
	}
	return Inventory{Format: inventoryFormat, Nodes: nodes}
}

// ParseInventory reads an exported inventory. What it gives is for AddNodes,
// which takes what describes a node and its machine, and leaves installs
// behind.
func ParseInventory(b []byte) (Inventory, error) {
	var v Inventory
	if err := strictJSON(b, &v); err != nil {
		return Inventory{}, fmt.Errorf("reading an inventory: %w", err)
	}
	return v, v.Check()
}

// Check refuses an inventory of a format that is not known.
func (v Inventory) Check() error {
	if v.Format != inventoryFormat {
		return fmt.Errorf("reading an inventory: its format is %d, this doppel knows %d", v.Format, inventoryFormat)
	}
	return nil
}

// Bytes writes the inventory as JSON, one that people can edit.
func (v Inventory) Bytes() ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the inventory: %w", err)
	}
	return append(b, '\n'), nil
}
