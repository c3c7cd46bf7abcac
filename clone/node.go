package clone

import (
	"encoding/json"
	"fmt"
)

// NodeConfig is what an installed node knows of itself: node.json in
// /etc/doppel/node.
type NodeConfig struct {
	Server  string `json:"server"`
	Node    string `json:"node"`
	Install string `json:"install"`
}

func nodeJSON(p *Plan) ([]byte, error) {
	b, err := json.MarshalIndent(NodeConfig{Server: p.Server, Node: p.Node, Install: p.ID}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write node.json: %w", err)
	}
	return append(b, '\n'), nil
}
