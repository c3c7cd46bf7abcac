package main

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/remote"
	resync "doppel/sync"
)

// syncFile is a [[sync]] of the configuration as it is written.
type syncFile struct {
	Image     string   `toml:"image"`
	Source    string   `toml:"source"`
	Root      string   `toml:"root"`
	Between   []string `toml:"between"`
	Nodes     []string `toml:"nodes"`
	Interval  string   `toml:"interval"`
	Jitter    string   `toml:"jitter"`
	Windows   []string `toml:"windows"`
	FullEvery string   `toml:"full_every"`
	Watch     bool     `toml:"watch"`
	Rescan    string   `toml:"rescan_every"`

	Identity   string   `toml:"identity"`
	KnownHosts string   `toml:"known_hosts"`
	Sudo       bool     `toml:"sudo"`
	Exclude    []string `toml:"exclude"`
	Limit      string   `toml:"limit"`
	LimitCPU   string   `toml:"limit_cpu"`
	Pre        string   `toml:"pre_capture"`
	Post       string   `toml:"post_capture"`

	Snapshot     string   `toml:"snapshot"`
	Freeze       []string `toml:"freeze"`
	FreezeFor    string   `toml:"freeze_for"`
	PostSnapshot string   `toml:"post_snapshot"`

	Keep           []string `toml:"keep"`
	PreUpdate      string   `toml:"pre_update"`
	PostUpdate     string   `toml:"post_update"`
	MaxUnavailable int      `toml:"max_unavailable"`

	KeepLast    int `toml:"keep_last"`
	KeepHourly  int `toml:"keep_hourly"`
	KeepDaily   int `toml:"keep_daily"`
	KeepWeekly  int `toml:"keep_weekly"`
	KeepMonthly int `toml:"keep_monthly"`
}

// syncConfig is a [[sync]] after everything in it was checked.
type syncConfig struct {
	Image     string
	Source    string    // empty: nothing is captured, nodes follow what is there
	Between   [2]string // heads that the image is kept between, instead of a source; empty: none
	Nodes     []string
	Schedule  resync.Schedule
	FullEvery time.Duration
	Watch     bool          // what changes on the source between rounds
	Rescan    time.Duration // everything is looked at all the same once in so long
	Capture   captureFlags
	Keep      []string // patterns as in clone.Rule
	Pre, Post string   // on nodes
	AtOnce    int
	Retain    imaging.Policy // zero: all versions stay
}

// pairHelp shows what is different between two heads.
const pairHelp = `Between two heads, instead of a source and those who follow, it says which
two nodes they are. Either may be the active one, which is captured, while the
other follows; at first it is the one named first:

  [[sync]]
  image = "head"
  between = ["head1", "head2"]`

// syncHelp shows every key but between.
const syncHelp = `A [[sync]] of the configuration keeps nodes equal to a head, or to another
machine whose image they run:

  [[sync]]
  image = "head"                  # the source is captured as this image
  source = "root@head"            # as in doppel capture; "local": this machine; left out: nodes follow what is captured by hand
  root = "/"                      # the directory of it to capture
  nodes = ["@head"]               # who follows
  interval = "15m"                # from the beginning of one round to that of the next
  jitter = "1m"                   # at most so much later
  windows = ["Mon-Fri 20:00-06:00", "Sat,Sun"]  # when rounds may begin; left out: at any time
  full_every = "168h"             # once in so long every file of the source is read anew
  watch = false                   # let the kernel of the source tell what changes: a round looks at that alone, and may run every few seconds
  rescan_every = "15m"            # with watch: once in so long everything is looked at all the same
  identity = "/root/.ssh/id_ed25519"            # these are as in doppel capture:
  known_hosts = "/root/.ssh/known_hosts"
  sudo = false
  exclude = ["scratch/*"]
  limit = "20M"
  limit_cpu = "50%"
  pre_capture = "…"               # on the source; when it fails, there is no round
  post_capture = "…"
  snapshot = "require"            # or "auto", "off", which is the default: read from snapshots of btrfs and LVM
  post_snapshot = "…"             # on the source, once the snapshots are taken; needs "require"
  freeze = ["/srv/db"]            # what is frozen while it is read, if it has no snapshot
  freeze_for = "30s"              # and for how long at most
  keep = ["srv/own/**"]           # what nodes keep as they are
  pre_update = "…"                # on the node; when it fails, nothing is touched
  post_update = "…"
  max_unavailable = 1             # nodes that are updated at once; 0: all
  keep_last = 24                  # versions; as in doppel image prune
  keep_hourly = 24
  keep_daily = 7
  keep_weekly = 4`

// checkSyncs checks every value, and names each by its place.
func checkSyncs(files []syncFile, bad func(format string, args ...any)) []syncConfig {
	var out []syncConfig
	seen, pairs := map[string]bool{}, map[string]int{}
	for i := range files {
		f := &files[i]
		at := func(key string) string { return fmt.Sprintf("sync %d, %s", i+1, key) }
		c := syncConfig{
			Image: f.Image, Source: f.Source, Nodes: f.Nodes, Pre: f.PreUpdate, Post: f.PostUpdate, Keep: f.Keep, AtOnce: f.MaxUnavailable,
			Retain: imaging.Policy{Last: f.KeepLast, Hourly: f.KeepHourly, Daily: f.KeepDaily, Weekly: f.KeepWeekly, Monthly: f.KeepMonthly},
			Capture: captureFlags{
				name: f.Image, root: cmp.Or(f.Root, "/"), key: f.Identity, knownHosts: f.KnownHosts, sudo: f.Sudo, exclude: f.Exclude,
				limit: f.Limit, limitCPU: f.LimitCPU, pre: f.Pre, post: f.Post, unattended: true,
				snapshot: f.Snapshot, freeze: f.Freeze, freezeFor: f.FreezeFor, postSnapshot: f.PostSnapshot,
			},
		}
		if err := imaging.CheckName(f.Image); err != nil {
			bad("%s: %v", at("image"), err)
		} else if seen[f.Image] {
			bad("%s: there is another sync of %s", at("image"), f.Image)
		}
		seen[f.Image] = true
		checkSource(f, &c, at, bad)
		checkBetween(f, &c, at, bad)
		for _, expression := range f.Nodes {
			if _, err := cluster.Select(nil, expression); err != nil && !isUnknown(err) {
				bad("%s: %v", at("nodes"), err)
			}
		}
		if len(f.Nodes) == 0 && f.Source == "" && len(f.Between) == 0 {
			bad("%s: there is neither a source nor a node: it would do nothing", at("nodes"))
		}
		for _, p := range f.Keep {
			if strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "." {
				bad("%s: %q is not a path from the root, as in srv/own/**", at("keep"), p)
			} else if _, err := path.Match(strings.TrimSuffix(p, "/**"), ""); err != nil {
				bad("%s: %q is no pattern", at("keep"), p)
			}
		}
		if f.MaxUnavailable < 0 {
			bad("%s: %d nodes cannot be updated at once", at("max_unavailable"), f.MaxUnavailable)
		}
		for key, n := range map[string]int{"last": f.KeepLast, "hourly": f.KeepHourly, "daily": f.KeepDaily, "weekly": f.KeepWeekly, "monthly": f.KeepMonthly} {
			if n < 0 {
				bad("%s: %d versions cannot be kept", at("keep_"+key), n)
			}
		}
		if c.pair() {
			if i := pairs[c.Between[0]]; i > 0 {
				bad("%s: %s is of the pair of sync %d already: a head is of one pair", at("between"), c.Between[0], i)
			} else if i := pairs[c.Between[1]]; i > 0 {
				bad("%s: %s is of the pair of sync %d already: a head is of one pair", at("between"), c.Between[1], i)
			}
			pairs[c.Between[0]], pairs[c.Between[1]] = i+1, i+1
		}
		out = append(out, c)
	}
	return out
}

// checkSource checks where and when is captured.
func checkSource(f *syncFile, c *syncConfig, at func(string) string, bad func(format string, args ...any)) {
	length := func(key, s string, or, least time.Duration) time.Duration {
		if s == "" {
			return or
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < least {
			bad("%s: %q is not a duration of %s or more, as 15m", at(key), s, least)
			return or
		}
		return d
	}
	c.Schedule.Every = length("interval", f.Interval, 15*time.Minute, time.Second)
	c.Schedule.Jitter = length("jitter", f.Jitter, 0, 0)
	c.FullEvery = length("full_every", f.FullEvery, 7*24*time.Hour, time.Minute)
	c.Watch = f.Watch
	c.Rescan = length("rescan_every", f.Rescan, 15*time.Minute, time.Second)
	switch {
	case f.Watch && (f.Snapshot != "" && f.Snapshot != "off" || len(f.Freeze) > 0):
		bad("%s: what is kept still while it is read is not watched: leave out watch, or snapshot and freeze", at("watch"))
	case f.Watch && f.Source == "" && f.Between == nil:
		bad("%s: there is no source to be watched", at("watch"))
	case f.Watch && c.Retain.IsZero():
		bad("%s: a source that is watched makes many versions: say which are to stay, as with keep_last = 24, keep_hourly = 24, keep_daily = 7", at("watch"))
	}
	for _, s := range f.Windows {
		w, err := resync.ParseWindow(s)
		if err != nil {
			bad("%s: %v", at("windows"), err)
		}
		c.Schedule.Windows = append(c.Schedule.Windows, w)
	}
	if f.Source == "" {
		return
	}
	if f.Source != local && !strings.HasPrefix(f.Source, nodePrefix) {
		if _, err := remote.ParseTarget(f.Source); err != nil {
			bad("%s: %v; name the host as [USER@]HOST[:PORT], or local for this machine", at("source"), err)
		}
	}
	if strings.HasPrefix(f.Source, nodePrefix) && (f.Pre != "" || f.Post != "" || f.PostSnapshot != "") {
		bad("%s: no command can be run on a node through its agent: leave pre_capture, post_snapshot and post_capture out, or name the host as [USER@]HOST", at("source"))
	}
	if _, err := c.Capture.consistency(); err != nil {
		bad("%s: %v", at("snapshot"), err)
	} else if err := c.Capture.check(f.Source); err != nil {
		bad("%s: %v", at("source"), err)
	}
}

// checkBetween checks the pair of heads that an image is kept between.
func checkBetween(f *syncFile, c *syncConfig, at func(string) string, bad func(format string, args ...any)) {
	if f.Between == nil {
		return
	}
	if len(f.Between) != 2 || f.Between[0] == f.Between[1] {
		bad("%s: name the two heads, as in between = [\"head1\", \"head2\"]", at("between"))
		return
	}
	for _, name := range f.Between {
		if names, err := cluster.ExpandNames(name); err != nil || len(names) != 1 || names[0] != name || strings.HasPrefix(name, "@") {
			bad("%s: %q is not the name of one node", at("between"), name)
			return
		}
	}
	if f.Source != "" {
		bad("%s: leave source out: one of the two heads is the source, and doppel sync turn changes which", at("between"))
	}
	if f.Root != "" && f.Root != "/" {
		bad("%s: heads of a pair are captured whole: leave root out", at("root"))
	}
	for key, given := range map[string]bool{
		"identity": f.Identity != "", "known_hosts": f.KnownHosts != "", "sudo": f.Sudo, "pre_capture": f.Pre != "", "post_capture": f.Post != "",
	} {
		if given {
			bad("%s: leave it out: heads of a pair are captured through their agents, without SSH", at(key))
		}
	}
	c.Between = [2]string(f.Between)
	for _, name := range f.Between {
		if !slices.Contains(c.Nodes, name) {
			c.Nodes = append(slices.Clone(c.Nodes), name)
		}
	}
}

// isSource tells whether a node is the source itself, which is never made equal
// to its own image.
func (c *syncConfig) isSource(n cluster.Node) bool {
	if node, ok := strings.CutPrefix(c.Source, nodePrefix); ok {
		return node == n.Name
	}
	target, err := remote.ParseTarget(c.Source)
	if c.Source == "" || c.Source == local || err != nil {
		return false // this machine is no node, see cluster.Options.Server
	}
	name, _, _ := strings.Cut(target.Host, ".")
	return target.Host == n.Addr.String() || name == n.Name
}

// isUnknown tells whether an error only says that something named is not there.
func isUnknown(err error) bool {
	r, ok := errors.AsType[*cluster.RefusedError](err)
	return ok && r.Unknown
}
