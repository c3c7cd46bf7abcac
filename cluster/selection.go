package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// Select finds the nodes that expressions name, each once, in the order of the
// expressions: a name, n[001-016,20] for a range of names, @compute or @head
// for a role, @image:REF for those with that image by default or on their
// disk, all. An expression that names nothing is refused.
func Select(nodes []Node, expressions ...string) ([]Node, error) {
	byName := make(map[string]int, len(nodes))
	for i, n := range nodes {
		byName[n.Name] = i
	}
	var out []Node
	taken := map[string]bool{}
	take := func(n Node) {
		if !taken[n.Name] {
			taken[n.Name] = true
			out = append(out, n)
		}
	}
	for _, x := range expressions {
		match, err := group(x)
		if err != nil {
			return nil, err
		}
		if match == nil {
			names, err := ExpandNames(x)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				i, ok := byName[name]
				if !ok {
					return nil, &RefusedError{What: "there is no node " + quoteName(name), Hint: "see doppel node ls", Unknown: true}
				}
				take(nodes[i])
			}
			continue
		}
		some := false
		for _, n := range nodes {
			if match(n) {
				some = true
				take(n)
			}
		}
		if !some {
			return nil, &RefusedError{What: "no node is meant by " + quoteName(x), Hint: "see doppel node ls", Unknown: true}
		}
	}
	return out, nil
}

// group gives what the nodes of an expression have in common, or nil when it
// is one of names.
func group(x string) (func(Node) bool, error) {
	if x == "all" {
		return func(Node) bool { return true }, nil
	}
	word, ok := strings.CutPrefix(x, "@")
	if !ok {
		return nil, nil
	}
	if ref, ok := strings.CutPrefix(word, "image:"); ok && ref != "" {
		name, version, whole := strings.Cut(ref, "@")
		return func(n Node) bool {
			runs, _, _ := strings.Cut(n.Runs, "@")
			wants, _, _ := strings.Cut(n.Image, "@")
			if whole && version != "" {
				return n.Image == ref || n.Runs == ref
			}
			return wants == name || runs == name
		}, nil
	}
	if role := Role(word); role == Compute || role == Head {
		return func(n Node) bool { return n.Role == role }, nil
	}
	return nil, refuse("give @compute, @head, @image:NAME, all, or names", "%s is no group of nodes", quoteName(x))
}

// ExpandNames writes out an expression of names: n[001-003,7]-ib becomes
// n001-ib, n002-ib, n003-ib, n7-ib. The digits of a range's first number are
// the least that each of its numbers has.
func ExpandNames(x string) ([]string, error) {
	bad := func(why string) ([]string, error) {
		return nil, refuse("write n[001-016,20] or a name", "%s names no nodes: %s", quoteName(x), why)
	}
	if x == "" {
		return bad("it is empty")
	}
	before, rest, ok := strings.Cut(x, "[")
	if !ok {
		if strings.Contains(x, "]") {
			return bad("a bracket is not opened")
		}
		return []string{x}, nil
	}
	list, after, ok := strings.Cut(rest, "]")
	if !ok {
		return bad("a bracket is not closed")
	}
	if strings.ContainsAny(list, "[") || strings.ContainsAny(after, "[]") {
		return bad("only one pair of brackets is allowed")
	}
	var out []string
	for part := range strings.SplitSeq(list, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err1 := number(first)
		to, err2 := number(last)
		if err1 != nil || err2 != nil || to < from {
			return bad(fmt.Sprintf("%s is no range of numbers", quoteName(part)))
		}
		if to-from >= maxSeries || len(out) >= maxSeries {
			return bad("it is too many")
		}
		for i := from; i <= to; i++ {
			out = append(out, fmt.Sprintf("%s%0*d%s", before, len(first), i, after))
		}
	}
	return out, nil
}

func number(s string) (uint64, error) {
	if len(s) != digits(s) || len(s) > 18 {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 10, 64)
}
