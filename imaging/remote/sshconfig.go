package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kevinburke/ssh_config"
)

// host is everything known about how to reach one host: what the user typed,
// then ssh_config, then ssh's own defaults.
type host struct {
	alias         string // as typed
	name          string // to connect to
	port          int
	user          string
	keyAlias      string   // HostKeyAlias
	identities    []string // files, Options.Keys first
	explicit      int      // how many of them Options.Keys are
	only          bool     // IdentitiesOnly
	knownHosts    []string // the first is written to
	strict        string   // ask, yes, accept-new
	hashHosts     bool
	jump          []Target
	timeout       time.Duration
	agentSocket   string
	passwords     bool // PasswordAuthentication and KbdInteractiveAuthentication
	batch         bool // BatchMode: never ask
	passwordTries int
}

// maxConfig bounds one configuration file, maxInclude how deep they nest (as
// in OpenSSH).
const (
	maxConfig  = 1 << 20
	maxInclude = 16
)

// config is the ssh_config that holds for one host.
type config struct {
	home, alias, user string
	lines             bytes.Buffer // keywords that hold for alias, in order
	parsed            *ssh_config.Config
}

// readConfig reads the files in order; those that are not there are passed
// over unless they must be.
func readConfig(files []string, must bool, home, alias, login string) (*config, error) {
	c := &config{home: home, alias: alias, user: login}
	for _, file := range files {
		err := c.include(file, 0)
		if errors.Is(err, fs.ErrNotExist) && !must {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read ssh_config: %w", err)
		}
	}
	parsed, err := ssh_config.DecodeBytes(c.lines.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read ssh_config: %w", err)
	}
	c.parsed = parsed
	return c, nil
}

// include gathers the lines of file that hold for the host. Host, Match and
// Include are decided here: the library knows Match only in part and refuses
// files with the rest of it, such as Fedora's own /etc/ssh/ssh_config.d.
func (c *config) include(file string, depth int) error {
	if depth > maxInclude {
		return fmt.Errorf("%s: included more than %d levels deep", file, maxInclude)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if len(text) > maxConfig {
		return fmt.Errorf("%s is larger than %d bytes", file, maxConfig)
	}
	active := true
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		word, args := keyword(line)
		switch word {
		case "":
		case "host":
			active = matchPatterns(fields(args), c.alias)
		case "match":
			active = c.match(fields(args))
		case "include":
			if !active {
				continue
			}
			if err := c.includeAll(fields(args), file, depth); err != nil {
				return fmt.Errorf("%s:%d: %w", file, number, err)
			}
		default:
			if active && args != "" {
				fmt.Fprintf(&c.lines, "%s %s\n", word, args)
			}
		}
		if c.lines.Len() > maxConfig {
			return fmt.Errorf("%s: with its includes larger than %d bytes", file, maxConfig)
		}
	}
	return nil
}

func (c *config) includeAll(globs []string, from string, depth int) error {
	for _, glob := range globs {
		glob = expandHome(glob, c.home)
		if !filepath.IsAbs(glob) {
			// As ssh_config(5): beside the user's file in ~/.ssh, beside the
			// system's in /etc/ssh.
			dir := filepath.Join(c.home, ".ssh")
			if strings.HasPrefix(from, "/etc/ssh/") {
				dir = "/etc/ssh"
			}
			glob = filepath.Join(dir, glob)
		}
		matches, err := filepath.Glob(glob)
		if err != nil {
			return fmt.Errorf("include %q: %w", glob, err)
		}
		for _, m := range matches {
			if err := c.include(m, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// match decides a Match line. Criteria that need a program or the network
// (exec, localnetwork) and those that come from elsewhere (tagged, command)
// never match.
func (c *config) match(args []string) bool {
	for i := 0; i < len(args); i++ {
		name, negate := strings.CutPrefix(strings.ToLower(args[i]), "!")
		name, value, inline := strings.Cut(name, "=")
		var holds bool
		switch name {
		case "all", "final":
			holds = true
		case "canonical":
			holds = false
		default:
			if !inline {
				if i++; i >= len(args) {
					return false
				}
				value = args[i]
			}
			patterns := strings.Split(value, ",")
			switch name {
			case "host", "originalhost":
				holds = matchPatterns(patterns, c.alias)
			case "user":
				holds = matchPatterns(patterns, c.user)
			case "localuser":
				holds = matchPatterns(patterns, localUser())
			default:
				return false
			}
		}
		if holds == negate {
			return false
		}
	}
	return len(args) > 0
}

// matchPatterns tells whether s matches one of the patterns and none of the
// negated ones.
func matchPatterns(patterns []string, s string) bool {
	h := ssh_config.Host{}
	for _, p := range patterns {
		if pattern, err := ssh_config.NewPattern(p); err == nil {
			h.Patterns = append(h.Patterns, pattern)
		}
	}
	return h.Matches(s)
}

// keyword splits a line into its keyword in lower case and the rest.
func keyword(line string) (word, args string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", ""
	}
	end := strings.IndexAny(line, " \t=")
	if end < 0 {
		return strings.ToLower(line), ""
	}
	args = strings.TrimLeft(line[end:], " \t")
	args = strings.TrimLeft(strings.TrimPrefix(args, "="), " \t")
	return strings.ToLower(line[:end]), args
}

// fields splits arguments as ssh does: at blanks outside of double quotes; a
// word that begins with # ends the line.
func fields(args string) []string {
	var words []string
	for args = strings.TrimLeft(args, " \t"); args != "" && args[0] != '#'; args = strings.TrimLeft(args, " \t") {
		if args[0] == '"' {
			if end := strings.IndexByte(args[1:], '"'); end >= 0 {
				words, args = append(words, args[1:1+end]), args[2+end:]
				continue
			}
		}
		end := strings.IndexAny(args, " \t")
		if end < 0 {
			end = len(args)
		}
		words, args = append(words, args[:end]), args[end:]
	}
	return words
}

// get gives the first value of a keyword.
func (c *config) get(key string) string {
	all := c.all(key)
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// all gives every value of a keyword.
func (c *config) all(key string) []string {
	values, err := c.parsed.GetAll(c.alias, key)
	if err != nil {
		return nil
	}
	return values
}

func (c *config) yes(key string, otherwise bool) bool {
	switch strings.ToLower(c.get(key)) {
	case "yes", "true", "on":
		return true
	case "no", "false", "off":
		return false
	}
	return otherwise
}

func (c *config) number(key string, otherwise int) (int, error) {
	v := c.get(key)
	if v == "" || strings.EqualFold(v, "none") {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("ssh_config for %s: %s %q is not a number", c.alias, key, v)
	}
	return int(n), nil
}

func expandHome(path, home string) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		return filepath.Join(home, strings.TrimPrefix(path, "~"))
	}
	return path
}

func localUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// expand replaces ssh_config's percent tokens, ${VARIABLES} and a leading ~.
func (h *host) expand(s, home string) string {
	s = expandHome(s, home)
	s = strings.NewReplacer("%%", "%", "%d", home, "%h", h.name, "%n", h.alias, "%k", h.knownAs(),
		"%p", strconv.Itoa(h.port), "%r", h.user, "%u", localUser(), "%i", strconv.Itoa(os.Getuid())).Replace(s)
	for {
		from := strings.Index(s, "${")
		if from < 0 {
			return s
		}
		end := strings.IndexByte(s[from:], '}')
		if end < 0 {
			return s
		}
		s = s[:from] + os.Getenv(s[from+2:from+end]) + s[from+end+1:]
	}
}

// knownAs is the host's name in known_hosts, without a port.
func (h *host) knownAs() string {
	if h.keyAlias != "" {
		return h.keyAlias
	}
	return h.name
}

// defaultIdentities are the key files that ssh tries when nothing is said.
var defaultIdentities = [...]string{"id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"}

// resolve finds out all about a target.
func resolve(t Target, o Options) (*host, error) {
	home := o.Home
	if home == "" {
		u, err := user.Current()
		if err != nil {
			return nil, fmt.Errorf("find the home directory for ~/.ssh: %w", err)
		}
		home = u.HomeDir
	}
	files, must := []string{filepath.Join(home, ".ssh", "config"), "/etc/ssh/ssh_config"}, false
	switch o.Config {
	case "":
	case "none":
		files = nil
	default:
		files, must = []string{o.Config}, true
	}
	login := t.User
	if login == "" {
		login = localUser()
	}
	c, err := readConfig(files, must, home, t.Host, login)
	if err != nil {
		return nil, err
	}
	return c.host(t, o)
}

func (c *config) host(t Target, o Options) (*host, error) {
	if command := c.get("ProxyCommand"); command != "" && !strings.EqualFold(command, "none") && c.get("ProxyJump") == "" {
		return nil, &remedied{
			fmt.Errorf("ssh_config for %s has ProxyCommand %q, which doppel does not run", c.alias, command),
			"write it as ProxyJump, or connect to an address that can be reached directly",
		}
	}
	h := &host{alias: t.Host, name: t.Host, user: t.User, port: t.Port, keyAlias: c.get("HostKeyAlias")}
	if h.user == "" {
		h.user = c.get("User")
	}
	if h.user == "" {
		h.user = localUser()
	}
	var err error
	if h.port == 0 {
		if h.port, err = c.number("Port", 22); err != nil {
			return nil, err
		}
	}
	if name := c.get("HostName"); name != "" {
		h.name = strings.NewReplacer("%%", "%", "%h", t.Host).Replace(name)
	}
	if h.passwordTries, err = c.number("NumberOfPasswordPrompts", 3); err != nil {
		return nil, err
	}
	seconds, err := c.number("ConnectTimeout", 20)
	if err != nil {
		return nil, err
	}
	h.timeout = time.Duration(seconds) * time.Second
	if o.Timeout > 0 {
		h.timeout = o.Timeout
	}
	h.only = c.yes("IdentitiesOnly", false)
	h.hashHosts = c.yes("HashKnownHosts", false)
	h.batch = c.yes("BatchMode", false)
	h.passwords = c.yes("PasswordAuthentication", true) || c.yes("KbdInteractiveAuthentication", true)
	c.identities(h, o)
	c.trust(h, o)
	c.agentSocket(h, o)
	return h, c.jumps(h)
}

func (c *config) identities(h *host, o Options) {
	h.explicit = len(o.Keys)
	h.identities = append(h.identities, o.Keys...)
	configured := c.all("IdentityFile")
	if len(configured) == 0 && (h.explicit == 0 || !h.only) {
		for _, name := range defaultIdentities {
			configured = append(configured, filepath.Join(c.home, ".ssh", name))
		}
	}
	for _, file := range configured {
		if strings.EqualFold(file, "none") {
			continue
		}
		h.identities = append(h.identities, h.expand(file, c.home))
	}
}

func (c *config) trust(h *host, o Options) {
	switch strings.ToLower(c.get("StrictHostKeyChecking")) {
	case "yes":
		h.strict = "yes"
	case "accept-new", "no", "off":
		// ssh's "no" also goes on when a key has changed. A capture may send
		// passwords and carries every secret of the head, so here it is
		// accept-new.
		h.strict = "accept-new"
	default:
		h.strict = "ask"
	}
	if o.AcceptNew {
		h.strict = "accept-new"
	}
	if o.KnownHosts != "" {
		h.knownHosts = []string{o.KnownHosts}
		return
	}
	users := fields(c.get("UserKnownHostsFile"))
	if len(users) == 0 {
		users = []string{"~/.ssh/known_hosts", "~/.ssh/known_hosts2"}
	}
	globals := fields(c.get("GlobalKnownHostsFile"))
	if len(globals) == 0 {
		globals = []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}
	}
	for _, file := range append(users, globals...) {
		if !strings.EqualFold(file, "none") {
			h.knownHosts = append(h.knownHosts, h.expand(file, c.home))
		}
	}
}

func (c *config) agentSocket(h *host, o Options) {
	socket := o.AgentSocket
	if socket == "" {
		socket = c.get("IdentityAgent")
	}
	switch {
	case socket == "", socket == "SSH_AUTH_SOCK":
		socket = os.Getenv("SSH_AUTH_SOCK")
	case strings.EqualFold(socket, "none"):
		socket = ""
	case strings.HasPrefix(socket, "$") && !strings.HasPrefix(socket, "${"):
		socket = os.Getenv(socket[1:])
	default:
		socket = h.expand(socket, c.home)
	}
	h.agentSocket = socket
}

// jumps reads ProxyJump: [user@]host[:port] or ssh:// URIs, comma-separated.
func (c *config) jumps(h *host) error {
	value := c.get("ProxyJump")
	if value == "" || strings.EqualFold(value, "none") {
		return nil
	}
	for hop := range strings.SplitSeq(value, ",") {
		t, err := ParseTarget(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(hop), "ssh://"), "/"))
		if err != nil {
			return fmt.Errorf("ssh_config for %s: ProxyJump: %w", c.alias, err)
		}
		h.jump = append(h.jump, t)
	}
	return nil
}
