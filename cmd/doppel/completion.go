package main

import (
	"strings"

	"github.com/spf13/cobra"

	"doppel/imaging"
)

// addCompletion adds cobra's own command, with examples and with errors like
// everyone else's.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Short = "Print a script that makes a shell complete doppel's words"
		c.Example = "  doppel completion bash > /etc/bash_completion.d/doppel"
		group(c)
		for _, shell := range c.Commands() {
			shell.Args = exactArgs()
			shell.Example = "  doppel completion " + shell.Name()
		}
	}
}

// completer gives the words that may stand for the argument after args.
type completer = cobra.CompletionFunc

// complete takes one completer for each argument; the last is for all that
// follow, too, when many is set.
func complete(many bool, each ...completer) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		i := len(args)
		if i >= len(each) && many {
			i = len(each) - 1
		}
		if i >= len(each) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return each[i](cmd, args, word)
	}
}

// completeFile leaves it to the shell, which knows the files.
func completeFile(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

func completeNothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeRef completes versions of images.
func (g *globals) completeRef(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	c, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list, err := c.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, v := range list {
		words = append(words, v.Ref())
		for _, tag := range v.Tags {
			words = append(words, v.Image+"@"+tag)
		}
	}
	return beginning(words, word), cobra.ShellCompDirectiveNoFileComp
}

// completeNode completes names of nodes, while a daemon is there to ask.
func (g *globals) completeNode(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	nodes, err := g.client().Nodes(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, n := range nodes {
		words = append(words, n.Name)
	}
	return beginning(words, word), cobra.ShellCompDirectiveNoFileComp
}

// completeMAC completes the machines that are no node's yet.
func (g *globals) completeMAC(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	seen, err := g.client().Sightings(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	for _, s := range seen {
		if s.Node == "" {
			words = append(words, s.MAC.String())
		}
	}
	return beginning(words, word), cobra.ShellCompDirectiveNoFileComp
}

// oneOf completes a flag that takes one of a few words.
func oneOf(words ...string) completer {
	return func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return beginning(words, word), cobra.ShellCompDirectiveNoFileComp
	}
}

func beginning(words []string, with string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, with) {
			out = append(out, w)
		}
	}
	return out
}
