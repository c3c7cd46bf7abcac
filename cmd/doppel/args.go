package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// argsHint is where a person looks after wrong arguments.
func argsHint(cmd *cobra.Command) string { return cmd.CommandPath() + " --help shows an example" }

// exactArgs wants the named arguments.
func exactArgs(names ...string) cobra.PositionalArgs { return rangeArgs(len(names), names...) }

// rangeArgs wants the named arguments, of which only the first so many must be
// there.
func rangeArgs(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef(argsHint(cmd), "%s: %s is missing", cmd.CommandPath(), names[len(args)])
		case len(args) > len(names):
			return usagef(argsHint(cmd), "%s: %q is one word too many", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// someArgs wants at least one.
func someArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef(argsHint(cmd), "%s: %s is missing", cmd.CommandPath(), name)
		}
		return nil
	}
}

// group makes a command that only holds others: by itself it shows them, and it
// refuses those that are not there.
func group(c *cobra.Command) {
	c.SuggestionsMinimumDistance = 2
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(cmd, args[0])
	}
	c.RunE = func(cmd *cobra.Command, args []string) error { return cmd.Help() }
}

func unknownCommand(parent *cobra.Command, name string) error {
	hint := parent.CommandPath() + " --help lists the commands"
	if like := parent.SuggestionsFor(name); len(like) > 0 {
		hint = fmt.Sprintf("did you mean %s %s?", parent.CommandPath(), like[0])
	}
	return usagef(hint, "there is no command %q", parent.CommandPath()+" "+name)
}

// newHelp is cobra's help command, which would take any word.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show what a command does",
		Example: "  doppel help image verify",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return unknownCommand(c, rest[0])
			}
			c.InitDefaultHelpFlag()
			c.InitDefaultVersionFlag()
			return c.Help()
		},
	}
}
