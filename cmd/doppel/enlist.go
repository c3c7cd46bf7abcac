package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging/remote"
	"doppel/web"
)

// enlistFlags are the flags of doppel node enlist.
type enlistFlags struct {
	captureFlags
	node         nodeFlags
	undo, dryRun bool
}

func newNodeEnlist(g *globals) *cobra.Command {
	var o enlistFlags
	c := &cobra.Command{
		Use:   "enlist [USER@]HOST[:PORT]",
		Short: "Make a machine that doppel did not install a node, with an agent",
		Long: `Enlist logs in to a running machine over SSH, as doppel capture does, and puts
there what an install would have: /usr/lib/doppel/doppel-agent, the unit
doppel-agent.service, and /etc/doppel/node with a key that is made there, its
certificate, and what is known of the machine's disks. It starts the unit, and
the inventory has the node. Nothing else on the machine is touched.

Such a node is captured without SSH (doppel capture node:NODE), asked in what it
differs from an image (doppel sync drift), and updated in place: the primary head
is enlisted so that what was changed on the standby, while that was the active
one, can flow back (between in a [[sync]]).

What the node runs is the version that was captured from this HOST last, or the
latest of --image. What was changed on it since is not undone by its first update
in place, but kept until doppel sync drift NODE --adopt or --revert decides. A
machine that is a node of another doppel, or was installed,
is refused. To do it again, after an interruption too, comes to the same.

--undo stops the unit, takes away all that enlist has put there and the agent has
kept since, and removes the node from the inventory. An agent that was there
before stays.

A machine whose root is on LVM, md or dm-crypt is captured like any other, but an
update in place is refused there unless its [[sync]] keeps boot/** and
usr/lib/modules/**: an initramfs of another machine may not find such a root.

Exit codes: 0 done; 3 done, but the agent was not started or not heard of yet.`,
		Example: `  doppel node enlist root@head1
  doppel node enlist admin@10.1.0.1 --sudo --name head1 --image head
  doppel node enlist root@head1 --undo`,
		Args:              exactArgs("HOST"),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEnlist(cmd.Context(), g, o, args[0], cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "the node's `name` (default: the machine's host name)")
	f.StringVar(&o.node.ip, "ip", "", "which of its `addresses` (default: the one in the network that is served)")
	f.StringVar(&o.node.role, "role", "head", "`role`: compute or head")
	f.StringVar(&o.node.domain, "domain", "", "DNS `domain`")
	f.StringVar(&o.node.image, "image", "", "`image` that was captured from it (default: by where versions were captured from)")
	f.StringVarP(&o.key, "identity", "i", "", "private key `file`")
	f.StringVar(&o.knownHosts, "known-hosts", "", "known_hosts `file` (default: as ssh does)")
	f.StringVar(&o.sshConfig, "ssh-config", "", "ssh_config `file` (default: as ssh does)")
	f.BoolVar(&o.acceptNew, "accept-new", false, "accept the key of a host not known yet, without asking")
	f.BoolVar(&o.sudo, "sudo", false, "become root on the host with sudo")
	f.BoolVar(&o.undo, "undo", false, "take away what enlist has put there, and remove the node")
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	_ = c.RegisterFlagCompletionFunc("role", oneOf(string(cluster.Compute), string(cluster.Head)))
	_ = c.RegisterFlagCompletionFunc("image", g.completeRef)
	return c
}

// enlisting is a conversation with the agent on a machine.
type enlisting struct {
	host  string
	conn  *remote.Conn
	far   io.ReadWriteCloser
	in    *bufio.Reader
	found clone.Found
}

// maxFound bounds what is read of the machine's words.
const maxFound = 4 << 20

// beginEnlisting brings the agent to a machine and hears what that is.
func beginEnlisting(ctx context.Context, o *enlistFlags, name string) (*enlisting, error) {
	if name == local || strings.HasPrefix(name, nodePrefix) {
		return nil, usagef("name the machine as [USER@]HOST[:PORT]; this one is reached as root@localhost", "%s cannot be enlisted: it is done over SSH", name)
	}
	target, err := remote.ParseTarget(name)
	if err != nil {
		return nil, &usageError{err.Error(), "name the host as [USER@]HOST[:PORT]"}
	}
	agent, err := findAgent("")
	if err != nil {
		return nil, err
	}
	conn, prompt, err := dial(ctx, &o.captureFlags, target)
	if err != nil {
		return nil, err
	}
	e := &enlisting{host: name, conn: conn}
	if e.far, err = remote.Start(ctx, conn, remote.AgentOptions{Path: agent, Sudo: o.sudo, Prompt: prompt}, "enlist"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	e.in = bufio.NewReader(e.far)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line, err := e.hear()
	if err == nil {
		var failed clone.Done
		if json.Unmarshal(line, &failed) == nil && failed.Failed != "" {
			err = errors.New(failed.Failed)
		} else {
			err = json.Unmarshal(line, &e.found)
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("asking %s what it is: %w", name, err), e.close())
	}
	return e, nil
}

// hear reads one line of the agent's.
func (e *enlisting) hear() ([]byte, error) {
	var line []byte
	for {
		part, err := e.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxFound:
			return nil, errors.New("it says more than it could have to")
		}
	}
}

// order has the agent do something, and waits for what came of it.
func (e *enlisting) order(o clone.Enlistment) (clone.Done, error) {
	var done clone.Done
	if err := json.NewEncoder(e.far).Encode(o); err != nil {
		return done, err
	}
	line, err := e.hear()
	if err == nil {
		err = json.Unmarshal(line, &done)
	}
	if err == nil && done.Failed != "" {
		err = errors.New(done.Failed)
	}
	if err != nil {
		return done, fmt.Errorf("on %s: %w", e.host, err)
	}
	return done, nil
}

func (e *enlisting) close() error { return errors.Join(e.far.Close(), e.conn.Close()) }

func runEnlist(ctx context.Context, g *globals, o enlistFlags, host string, out io.Writer) (err error) {
	ours, err := g.client().Authority(ctx)
	if err != nil {
		return err
	}
	e, err := beginEnlisting(ctx, &o, host)
	if err != nil {
		return err
	}
	defer func() {
		if e := e.close(); e != nil {
			newLog(os.Stderr).Warn("leaving the host", "error", e)
		}
	}()
	if err := e.mayBe(ours, &o); err != nil {
		return err
	}
	if o.undo {
		return e.undo(ctx, g, o, out)
	}
	req := web.EnlistRequest{Name: o.name, Role: cluster.Role(o.node.role), Domain: o.node.domain, Found: e.found, DryRun: true}
	if o.node.ip != "" {
		if req.Addr, err = parseAddr("--ip", o.node.ip); err != nil {
			return err
		}
	}
	if req.Runs, req.Digest, err = capturedFrom(ctx, g, o.node.image, host); err != nil {
		return err
	}
	a, err := g.client().Enlist(ctx, req) // nothing of the machine is touched before it is known that it can be
	if err != nil {
		return err
	}
	if o.dryRun {
		return printEnlisted(out, g, "would enlist", e, a, clone.Done{Started: true})
	}
	req.DryRun = false
	if a, err = g.client().Enlist(ctx, req); err != nil {
		return err
	}
	done, err := e.order(clone.Enlistment{Plan: a.Plan, Certificate: a.Certificate, CA: a.CA})
	if err != nil {
		return &hintError{err, "the same command again finishes it; with --undo it takes everything back"}
	}
	if done.Started {
		a.Node, err = awaitNode(ctx, g, a.Node)
	}
	return errors.Join(printEnlisted(out, g, "enlisted", e, a, done), err)
}

// mayBe refuses a machine that is somebody's already, and gives the node its
// name.
func (e *enlisting) mayBe(ours []byte, o *enlistFlags) error {
	n := e.found.Node
	switch {
	case n == nil && e.found.Agent != "" && !o.undo:
		return &hintError{fmt.Errorf("on %s lies another version of doppel's agent, in /usr/lib/doppel", e.host), "install the same version of doppel there, or remove it"}
	case n == nil:
		if o.name == "" {
			o.name = shortName(e.found.Hostname)
		}
		return nil
	case !bytes.Equal(bytes.TrimSpace(e.found.CA), bytes.TrimSpace(ours)):
		return &hintError{fmt.Errorf("%s is the node %s of another doppel, at %s", e.host, n.Node, n.Server), "take it back there first: doppel node enlist " + e.host + " --undo, if it was enlisted"}
	case !n.Enlisted:
		return &hintError{fmt.Errorf("%s is the node %s already, which doppel installed", e.host, n.Node), "it has an agent, and needs no enlisting"}
	case o.name != "" && o.name != n.Node:
		return &hintError{fmt.Errorf("%s is the node %s already", e.host, n.Node), "leave --name out, or take it back with --undo first"}
	}
	o.name = n.Node
	return nil
}

// capturedFrom is the version that was captured last from a host, of an image if
// one is named; empty: none was.
func capturedFrom(ctx context.Context, g *globals, image, host string) (ref, digest string, err error) {
	catalog, err := g.catalog()
	if err != nil {
		return "", "", err
	}
	if image != "" {
		v, err := catalog.Resolve(ctx, image)
		if err != nil {
			return "", "", usagef("see doppel image ls", "--image: %v", err)
		}
		return v.Ref(), v.Digest, nil
	}
	list, err := catalog.List(ctx)
	if err != nil {
		return "", "", err
	}
	var last time.Time
	for _, v := range list {
		if v.Source == host && v.Time.After(last) {
			ref, digest, last = v.Ref(), v.Digest, v.Time
		}
	}
	return ref, digest, nil
}

// heardWithin is how long an agent that was just started has to be heard of.
const heardWithin = time.Minute

// awaitNode waits until the node's agent is heard of.
func awaitNode(ctx context.Context, g *globals, n cluster.Node) (cluster.Node, error) {
	limited, cancel := context.WithTimeout(ctx, heardWithin)
	defer cancel()
	since := n.Enlisted
	err := g.client().WatchNodes(limited, []string{n.Name}, func(nodes []cluster.Node) error {
		if len(nodes) == 1 {
			n = nodes[0]
		}
		if n.LastUp.After(since) {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return n, nil
	case ctx.Err() != nil:
		return n, context.Cause(ctx)
	}
	return n, &partlyError{&hintError{fmt.Errorf("%s has not been heard of for %s", n.Name, heardWithin), "see journalctl -u doppel-agent on it; it must reach doppel at its address in the network that is served"}}
}

func printEnlisted(w io.Writer, g *globals, did string, e *enlisting, a web.EnlistAnswer, done clone.Done) error {
	if g.json {
		if err := printJSON(w, a.Node); err != nil {
			return err
		}
	} else {
		runs := "nothing was captured from it yet"
		if a.Node.Runs != "" {
			runs = "it was captured last as " + a.Node.Runs
		}
		fmt.Fprintf(w, "%s %s: %s, %s, %s firmware, %s on %s; %s\n", did, a.Node.Name, e.host, printable(e.found.System), a.Plan.Firmware, a.Node.Addr, a.Node.MAC, runs)
		if note := a.Plan.Found.Note; note != "" {
			fmt.Fprintf(w, "it is updated in place only where its [[sync]] keeps boot/** and usr/lib/modules/**: %s\n", printable(note))
		}
	}
	if !done.Started {
		return &partlyError{&hintError{fmt.Errorf("the agent was not started on %s: systemd does not run there", e.host), "start it: /usr/lib/doppel/doppel-agent node"}}
	}
	return nil
}

// undo takes back what an enlistment has put on the machine, and then the node.
func (e *enlisting) undo(ctx context.Context, g *globals, o enlistFlags, out io.Writer) error {
	if o.dryRun {
		_, err := fmt.Fprintf(out, "would stop doppel-agent.service on %s, remove it, /usr/lib/doppel, /etc/doppel/node and /var/lib/doppel/tables there, and the node %s\n", e.host, o.name)
		return err
	}
	n, err := g.client().Node(ctx, o.name)
	var none *web.Error
	switch {
	case errors.As(err, &none) && none.Status == http.StatusNotFound:
		n = cluster.Node{}
	case err != nil:
		return err
	case n.Enlisted.IsZero():
		return &hintError{fmt.Errorf("%s was not enlisted", n.Name), "doppel node rm takes it out of the inventory"}
	}
	done, err := e.order(clone.Enlistment{Remove: true})
	if err != nil {
		return &hintError{err, "the same command again finishes it"}
	}
	if n.Name != "" {
		if _, err := g.client().RemoveNodes(ctx, web.Named{Nodes: []string{n.Name}}); err != nil {
			return err
		}
	}
	for _, l := range done.Left {
		fmt.Fprintf(os.Stderr, "doppel: left on %s: %s\n", e.host, printable(l))
	}
	if g.json {
		return printJSON(out, done)
	}
	_, err = fmt.Fprintf(out, "%s is no node any more, and nothing of doppel is left on %s\n", o.name, e.host)
	return err
}
