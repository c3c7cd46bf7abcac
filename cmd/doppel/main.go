package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "devel"

// gcPercent has garbage collected earlier than Go does by itself. What a large
// image takes is buffers, which are used again, and an index, which stays: more
// room for garbage would make nothing faster.
const gcPercent = 30

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run(os.Args[1:]))
}

// run runs one command line until it ends or the process is told to.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	defer stop()
	return execute(ctx, args)
}

// execute runs one command line and says what went wrong, in two lines.
func execute(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code codeError
	if err != nil && !errors.As(err, &code) {
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "doppel: interrupted")
		} else {
			fmt.Fprintf(os.Stderr, "doppel: error: %s\n", what(err))
		}
		if h := hint(err); h != "" {
			fmt.Fprintf(os.Stderr, "doppel: hint: %s\n", h)
		}
	}
	if ctx.Err() != nil && err != nil {
		return exitInterrupted
	}
	return exitCode(err)
}

// globals are the flags that every command has.
type globals struct {
	config string
	state  string
	server string
	json   bool
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "doppel",
		Short: "Doubles of a running Linux head node",
		Long: `doppel captures a running Linux head over SSH into compressed,
content-addressed images, and installs them unattended on machines that boot
from the network.`,
		Example: `  doppel init --interface eth1
  doppel capture root@head --name head
  doppel serve`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
			return unknownCommand(cmd, words[0]) // whose flag it would be
		}
		return &usageError{err.Error(), cmd.CommandPath() + " --help shows its flags"}
	})
	f := root.PersistentFlags()
	f.StringVar(&g.config, "config", "/etc/doppel/doppel.toml", "configuration `file`")
	f.StringVar(&g.state, "state", "/var/lib/doppel", "state `directory`")
	f.StringVar(&g.server, "server", "", "the daemon's socket (default DIR/doppel.sock)")
	f.BoolVar(&g.json, "json", false, "print JSON")
	root.AddGroup(
		&cobra.Group{ID: "image", Title: "Images (no daemon needed):"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
	)
	for _, c := range []*cobra.Command{newCapture(g), newImage(g)} {
		c.GroupID = "image"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{
		newInit(g), newPreflight(g), newServe(g), newNode(g), newCollect(g), newAssign(g), newUnassign(g),
		newDeploy(g), newDisarm(g), newSync(g), newStatus(g), newEvents(g),
	} {
		c.GroupID = "cluster"
		root.AddCommand(c)
	}
	group(root)
	root.SetHelpCommand(newHelp())
	root.AddCommand(newMan(), newKeep())
	addCompletion(root)
	return root
}

// socket is where the daemon listens.
func (g *globals) socket() string {
	if g.server != "" {
		return g.server
	}
	return filepath.Join(g.state, "doppel.sock")
}

// keysDir is where audience keys and certificates are.
func (g *globals) keysDir() string { return filepath.Join(g.state, "keys") }
