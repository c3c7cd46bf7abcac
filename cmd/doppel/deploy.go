package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/web"
)

// afters is what a machine can do after its install.
var afters = []string{"reboot", "poweroff", "shell"}

func newDeploy(g *globals) *cobra.Command {
	var req web.Deploy
	var watch, yes bool
	c := &cobra.Command{
		Use:   "deploy NODES",
		Short: "Arm an unattended install: the machine's disk will be erased",
		Long: `Deploy arms each node for one install of an image. The machine installs when it
next boots from the network (one that waits in a collection does at once), and
then starts from its own disk. Until the install has succeeded it is tried again
at every boot; doppel disarm takes it back.

The disk is the one that --disk names (a path, a link below /dev/disk, a serial
number), else the machine's only fixed disk that is large enough; a machine with
several is not touched, and status lists them.

With --in-place nothing is erased: nodes that run are made equal to the image as
they run, but for their identity (name, addresses, host keys, logs). Files are
replaced whole, what the image lacks is removed last, and a new kernel is in the
boot menu before an old one goes. An earlier version brings a node back to it.

With --watch the exit code is 0 when all nodes are up from their own disks, 1 if
none is, 3 if some are not.`,
		Example: `  doppel deploy node001 --image head@latest --watch
  doppel deploy @compute --image head@3 --dry-run
  doppel deploy standby --image head@6 --in-place --watch`,
		Args:              someArgs("NODES"),
		ValidArgsFunction: complete(true, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.InPlace && !cmd.Flags().Changed("after") {
				req.After = ""
			}
			if req.After != "" && !slices.Contains(afters, req.After) {
				return usagef("give "+strings.Join(afters, ", "), "--after: %q is not something to do after an install", req.After)
			}
			req.Nodes = args
			return runDeploy(cmd.Context(), g, req, watch, yes, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&req.Image, "image", "", "image `REF` (default: the node's own)")
	f.StringVar(&req.Disk, "disk", "", "the `disk` to erase")
	f.StringVar(&req.After, "after", "reboot", "what the machine `does` when it is installed: "+strings.Join(afters, ", "))
	f.BoolVar(&req.InPlace, "in-place", false, "erase nothing: make nodes that run equal to the image")
	f.BoolVar(&req.Full, "full", false, "with --in-place: compare by content, instead of trusting size and time")
	f.BoolVar(&req.Force, "force", false, "with --in-place: though the image is of another distribution than the node")
	f.BoolVar(&req.DryRun, "dry-run", false, "only show what would be erased")
	f.BoolVar(&watch, "watch", false, "follow the installs to their end")
	f.BoolVar(&yes, "yes", false, "do not ask")
	_ = c.RegisterFlagCompletionFunc("image", g.completeRef)
	_ = c.RegisterFlagCompletionFunc("after", oneOf(afters...))
	return c
}

func runDeploy(ctx context.Context, g *globals, req web.Deploy, watch, yes bool, out io.Writer) error {
	client := g.client()
	ask := req
	ask.DryRun = true
	preview, err := client.Deploy(ctx, ask)
	if err != nil {
		return err
	}
	if !g.json || req.DryRun {
		if err := printDeployments(out, g, preview); err != nil {
			return err
		}
	}
	if req.DryRun {
		return nil
	}
	if err := confirm(ctx, yes, eraseQuestion(preview)); err != nil {
		return err
	}
	armed, err := client.Deploy(ctx, req)
	if err != nil {
		return err
	}
	if !watch {
		if g.json {
			return printDeployments(out, g, armed)
		}
		said := "armed; each installs when it next boots from the network"
		if req.InPlace {
			said = "ordered; each begins as soon as it is heard from, and doppel status shows how far it is"
		}
		_, err := fmt.Fprintln(out, said)
		return err
	}
	return watchInstalls(ctx, g, client, armed, out)
}

// eraseQuestion names what is about to be lost.
func eraseQuestion(list []web.Deployment) string {
	var names []string
	for _, d := range list {
		names = append(names, d.Node)
	}
	if len(list) > 0 && len(list[0].Paths) > 0 {
		return fmt.Sprintf("undo what was changed on %s at %s?", strings.Join(names, ", "), printable(strings.Join(list[0].Paths, ", ")))
	}
	if len(list) > 0 && list[0].InPlace {
		return fmt.Sprintf("make %s equal to %s as they run?", strings.Join(names, ", "), list[0].Image)
	}
	return fmt.Sprintf("erase and install %s?", strings.Join(names, ", "))
}

func printDeployments(w io.Writer, g *globals, list []web.Deployment) error {
	if g.json {
		return printJSON(w, list)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tMACHINE\tFIRMWARE\tADDRESS\tIMAGE\tWILL BE ERASED")
	for _, d := range list {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Node, d.MAC, d.Arch, d.Addr, d.Image, printable(d.Erases))
		for _, warning := range d.Warnings {
			fmt.Fprintf(t, "\t→ %s\n", printable(warning))
		}
	}
	return t.Flush()
}

// watch follows installs.
type watch struct {
	out     io.Writer
	json    bool
	inPlace bool              // updates, not installs
	ids     map[string]string // install or update by node
	after   map[string]string
	last    map[string]string // what was said of a node
	pace    map[string]*pace
	ended   map[string]bool // how each node's install ended: well or not
}

// watchInstalls follows the installs until each node is up from its own disk,
// or has failed.
func watchInstalls(ctx context.Context, g *globals, client *web.Client, armed []web.Deployment, out io.Writer) error {
	w := &watch{out: out, json: g.json, ids: map[string]string{}, after: map[string]string{}, last: map[string]string{}, pace: map[string]*pace{}, ended: map[string]bool{}}
	var names []string
	for _, d := range armed {
		names = append(names, d.Node)
		w.inPlace = d.InPlace
		w.ids[d.Node], w.after[d.Node] = d.Install, d.After
		w.pace[d.Node] = newPace(plainEvery)
	}
	err := client.WatchNodes(ctx, names, func(nodes []cluster.Node) error {
		for _, n := range nodes {
			if err := w.node(n); err != nil {
				return err
			}
		}
		if len(w.ended) == len(w.ids) {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		err = nil
	case err == nil:
		err = &hintError{errors.New("the watch ended before the installs did: doppel serve was stopped, or a node removed"),
			"the installs go on once doppel serve runs; doppel status shows them"}
	}
	good := 0
	for _, ok := range w.ended {
		if ok {
			good++
		}
	}
	if w.json {
		counts := map[string]int{"up": good, "failed": len(w.ended) - good, "unfinished": len(w.ids) - len(w.ended)}
		err = errors.Join(err, printEvent(out, "summary", counts))
	}
	switch {
	case err != nil:
		return err
	case good == len(w.ids):
		return nil
	case good == 0:
		return codeError(exitFailed)
	}
	return codeError(exitPartial)
}

// node takes one node's state.
func (w *watch) node(n cluster.Node) error {
	if _, done := w.ended[n.Name]; done {
		return nil
	}
	judge := w.judge
	if w.inPlace {
		judge = w.judgeUpdate
	}
	text, ended, good := judge(n)
	if ended {
		w.ended[n.Name] = good
	}
	install := cluster.Install{}
	switch {
	case w.inPlace && n.Update != nil:
		install = cluster.Install{Stage: n.Update.Stage, Detail: n.Update.Detail, Done: n.Update.Done, Total: n.Update.Total}
	case !w.inPlace && n.Install != nil:
		install = *n.Install
	}
	key := string(n.State) + install.Stage + fmt.Sprint(ended)
	if key == w.last[n.Name] && !w.pace[n.Name].due() {
		return nil
	}
	w.last[n.Name] = key
	if w.json {
		return printEvent(w.out, "node", map[string]any{"node": n.Name, "state": n.State, "stage": install.Stage,
			"done": install.Done, "total": install.Total, "detail": install.Detail, "reason": n.Reason})
	}
	_, err := fmt.Fprintf(w.out, "%s  %-10s %s  %s\n", time.Now().Format(time.TimeOnly), n.State, n.Name, text)
	return err
}

// judge says how a node's install stands, and whether and how it has ended.
func (w *watch) judge(n cluster.Node) (text string, ended, good bool) {
	switch {
	case n.Install == nil: // disarming forgets it
		return "was disarmed", true, false
	case n.Install.ID != w.ids[n.Name]:
		return "was deployed again by somebody else", true, false
	case n.State == cluster.Failed:
		return printable(n.Reason), true, false
	case n.State == cluster.Installed && n.LastUp.After(n.Install.Finished):
		return "up from its own disk", true, true
	case n.State == cluster.Installed && w.after[n.Name] != "reboot":
		return "installed; after that: " + w.after[n.Name], true, true
	case n.State == cluster.Installed:
		return "installed, starting from its own disk", false, false
	case n.State == cluster.Armed:
		return "waits for the machine to boot from the network", false, false
	case n.State == cluster.Installing:
		return stageText(n.Install.Stage, n.Install.Detail, n.Install.Done, n.Install.Total), false, false
	}
	return "was disarmed", true, false
}

// judgeUpdate says how a node's update stands, and whether and how it has ended.
func (w *watch) judgeUpdate(n cluster.Node) (text string, ended, good bool) {
	u := n.Update
	switch {
	case u == nil || u.ID != w.ids[n.Name]:
		return "was ordered something else meanwhile", true, false
	case u.Failed != "":
		return printable(u.Failed), true, false
	case !u.Pending():
		return "runs " + u.Image + ": " + u.Result, true, true
	case u.Begun.IsZero():
		return "waits to be heard from", false, false
	}
	return stageText(u.Stage, u.Detail, u.Done, u.Total), false, false
}

func newDisarm(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "disarm NODES",
		Short: "Take back the permission to install, or the order to update",
		Long: `Disarm takes back what doppel deploy permitted or ordered. A machine that is
writing its disk at that moment stops at its next report, and its disk is of no
use until it is deployed again; one that is updated in place stays part old and
part new until it is.`,
		Example:           "  doppel disarm node001",
		Args:              someArgs("NODES"),
		ValidArgsFunction: complete(true, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := g.client().Disarm(cmd.Context(), web.Named{Nodes: args})
			if err != nil {
				return err
			}
			return printDone(cmd.OutOrStdout(), g, "disarmed", nodes)
		},
	}
}

// nodeUsing names a node that runs or is to get a version: by the word of the
// daemon, or of the state where none runs.
func nodeUsing(ctx context.Context, g *globals, ref string) (string, error) {
	nodes, err := g.client().Nodes(ctx)
	var syncs []cluster.Sync
	var problem *web.Error
	switch {
	case errors.As(err, &problem) && problem.Status == 0:
		nodes, syncs, err = usersOnDisk(filepath.Join(g.state, "cluster.db"))
	case err == nil:
		var list []web.SyncStatus
		if list, err = g.client().Syncs(ctx); errors.As(err, &problem) && problem.Status == http.StatusConflict {
			err = nil // none is configured
		}
		for _, s := range list {
			syncs = append(syncs, s.Sync)
		}
	}
	if err != nil {
		return "", err
	}
	return userOf(nodes, syncs, ref), nil
}

// userOf names one of the nodes that runs or is to get a version, and says how
// it uses it, or a pair that needs it; empty: none does.
func userOf(nodes []cluster.Node, syncs []cluster.Sync, ref string) string {
	for _, s := range syncs {
		if s.Pair != nil && s.Pair.Common == ref {
			return fmt.Sprintf("the heads of %s had %s in common when they parted", s.Image, ref)
		}
	}
	for _, n := range nodes {
		switch {
		case n.Runs == ref:
			return fmt.Sprintf("%s runs %s", n.Name, ref)
		case n.Install != nil && n.Install.Image == ref && (n.State == cluster.Armed || n.State == cluster.Installing):
			return fmt.Sprintf("%s is to get %s", n.Name, ref)
		case n.Update.Pending() && n.Update.Image == ref:
			return fmt.Sprintf("%s is becoming %s", n.Name, ref)
		case n.Parted != nil && n.Parted.Base == ref:
			return fmt.Sprintf("%s may have changes of its own since %s", n.Name, ref)
		}
	}
	return ""
}

// usersOnDisk reads the inventory and the syncs of a state that no daemon owns.
func usersOnDisk(path string) ([]cluster.Node, []cluster.Sync, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	c, err := cluster.Open(path, cluster.Options{})
	if err != nil {
		return nil, nil, err
	}
	nodes, syncs := c.Nodes(), c.Syncs()
	return nodes, syncs, c.Close()
}
