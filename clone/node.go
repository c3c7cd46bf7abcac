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

	Enlisted   bool `json:"enlisted,omitempty"`    // the machine was not installed by doppel
	AgentThere bool `json:"agent_there,omitempty"` // and had the agent before
}

// DecodeNodeConfig reads node.json.
func DecodeNodeConfig(b []byte) (NodeConfig, error) {
	var c NodeConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read node.json: %w", err)
	}
	if c.Server == "" || c.Node == "" {
		return c, fmt.Errorf("read node.json: it is of no node")
	}
	return c, nil
}

func nodeJSON(p *Plan) ([]byte, error) {
	return configJSON(NodeConfig{Server: p.Server, Node: p.Node, Install: p.ID})
}

func configJSON(c NodeConfig) ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write node.json: %w", err)
	}
	return append(b, '\n'), nil
}

// EncodePlan writes a plan as an installed node keeps it: plan.json in
// /etc/doppel/node.
func EncodePlan(p *Plan) ([]byte, error) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write plan.json: %w", err)
	}
	return append(b, '\n'), nil
}

// DecodePlan reads what EncodePlan wrote, and refuses a plan that no install
// can have had.
func DecodePlan(b []byte) (*Plan, error) {
	var p Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read plan.json: %w", err)
	}
	root := p.FileSystemAt("/")
	switch {
	case p.ID == "" || p.Node == "":
		return nil, fmt.Errorf("read plan.json: it is of no install")
	case p.Role != roleCompute && p.Role != roleHead:
		return nil, fmt.Errorf("read plan.json: %q is no role", p.Role)
	case p.Firmware != BIOS && p.Firmware != UEFI:
		return nil, fmt.Errorf("read plan.json: %q is no firmware", p.Firmware)
	case root == nil:
		return nil, fmt.Errorf("read plan.json: it has no root file system")
	case !p.Addr.IsValid():
		return nil, fmt.Errorf("read plan.json: %s has no address", p.Node)
	}
	return &p, nil
}
