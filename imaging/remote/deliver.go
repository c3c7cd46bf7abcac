package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"doppel/imaging"
	"doppel/imaging/store"
)

// dirPrefix begins the name of the temporary directory on a head.
const dirPrefix = "doppel-agent."

// agentFile is the agent's name in it.
const agentFile = "doppel-agent"

// places are where the agent may go, best first: what is emptied at boot, then
// what is not.
var places = [...]string{"/tmp", "/var/tmp", "/dev/shm", "$HOME"}

// leftover is how old, in minutes, a directory must be for the next capture to
// remove it: its own capture's shell was killed, or the head lost its power.
const leftover = 120

// settling is how long what was sent has to arrive and to be tried out.
const settling = 5 * time.Minute

// delivery brings one agent to one head.
type delivery struct {
	conn    *Conn
	options AgentOptions
	name    string // of the directory
	root    bool   // logged in as root
	work    string // the agent's subcommand

	packing sync.WaitGroup // of what follows
	binary  []byte
	packed  []byte // by gzip
	digest  store.ID
	fault   error
}

// capturing is the work of the agent on a head, when it is no other.
const capturing = "capture"

func newDelivery(conn *Conn, o AgentOptions) *delivery {
	var random [12]byte
	rand.Read(random[:])
	return &delivery{conn: conn, options: o, name: dirPrefix + hex.EncodeToString(random[:]), work: capturing}
}

// pack reads the agent and packs it, while the head is asked what it is: at
// gzip's fastest, which makes less than half of it in a tenth of a second. At
// its best it would take another second to save another tenth.
func (d *delivery) pack() {
	if d.binary, d.fault = readBounded(d.options.Path, maxAgent); d.fault != nil {
		d.fault = fmt.Errorf("read the agent to run on %s: %w", d.conn.host.alias, d.fault)
		return
	}
	d.packing.Go(func() { d.digest = store.Sum(d.binary) })
	d.packed = gzipped(d.binary)
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // a level that there is
	_, _ = z.Write(data)                            // a buffer takes everything
	_ = z.Close()
	return b.Bytes()
}

// gzipProbe is the word ok, packed by gzip, for a shell's printf.
const gzipProbe = `\037\213\010\000\000\000\000\000\002\003\313\317\006\000\107\335\334\171\002\000\000\000`

// courier is the script that takes delivery of the agent in the first of the
// places from number from on where programs may be run, tries it out, and runs
// it with prefix in front. It is all one session, and the shell that runs it
// waits for the agent's end: whichever way things end, by the end of the
// session's input or by a signal that can be caught, that shell removes the
// directory it made, if the agent has not done so yet. What is to be done first
// stands in lines of first.
//
// Nothing is sent before it asks, so that no start-up file of the login's shell
// can swallow it; and nothing is sent behind the agent before it is ready, so
// that it does no harm where head reads more than it was told to (busybox's
// does). How much it is comes first, in a line: read takes no byte more.
func (d *delivery) courier(from int, prefix string, first ...string) string {
	var quoted []string
	for _, p := range places[from:] {
		quoted = append(quoted, `"`+p+`"`)
	}
	// A password can be told sudo but once, so there only the login tries.
	trial := prefix
	if strings.Contains(prefix, "-S") {
		trial = ""
	}
	return script(append(append([]string{`u=$(id -u)`}, first...),
		`set -f`, `umask 077`, `d=`,
		`clean() { test -z "$d" || rm -rf "$d"; }`,
		`trap clean 0`, `trap "exit 1" 1 2 3 13 15`,
		`n=`+strconv.Itoa(from),
		`for p in `+strings.Join(quoted, " ")+`; do n=$((n+1))`,
		`find "$p" -maxdepth 1 -type d -name "`+dirPrefix+`*" -user $u -mmin +`+strconv.Itoa(leftover)+` -exec rm -rf {} + 2>/dev/null`,
		`d="$p/`+d.name+`"`,
		`mkdir -m 700 "$d" 2>/dev/null || { d=; continue; }`,
		// noexec shows with any program: ask with one that costs nothing.
		`{ printf "#%s/bin/sh\nexit 0\n" "$(printf "\041")" >"$d/try" && chmod 700 "$d/try" && "$d/try"; } 2>/dev/null && rm -f "$d/try" && break`,
		`clean`, `d=`,
		`done`,
		`test -n "$d" || { echo "`+marker+answerNone+`"; exit 0; }`,
		`f="$d/`+agentFile+`"`,
		// POSIX knows no head -c. A pipe gives dd what is in it, up to a block;
		// what has arrived shows in the file, so it must come as it is.
		`how=`+answerSend,
		`if printf xx | head -c 1 >/dev/null 2>&1; then take() { head -c "$sent"; }`,
		`if test "$(printf "`+gzipProbe+`" | gzip -dc 2>/dev/null)" = ok; then how=`+answerSendPacked+`; fi`,
		`else take() { s=0; while test $s -lt "$sent"; do dd bs=65536 count=1 2>/dev/null; t=$(wc -c <"$f"); test "$t" -gt $s || break; s=$t; done; }`,
		`fi`,
		`echo "`+marker+`$how"`,
		`read -r sent size`,
		`if test $how = `+answerSendPacked+`; then e=$({ take | gzip -dc; } 2>&1 >"$f"); else e=$(take 2>&1 >"$f"); fi`,
		`test "$(wc -c <"$f")" -eq "$size" 2>/dev/null || { echo "`+marker+answerUnfit+` $n $p": $e; exit 0; }`,
		`e=$(chmod 700 "$f" 2>&1 && `+trial+`"$f" version 2>&1 </dev/null) || { echo "`+marker+answerUnfit+` $n $p": $e; exit 0; }`,
		`echo "`+marker+answerReady+`"`,
		prefix+`"$f" `+d.work+` --unlink`,
		`exit $?`)...)
}

// What courier answers.
const (
	answerSend       = "send"   // send the agent
	answerSendPacked = "packed" // send the agent, packed by gzip
	answerReady      = "ready"  // what follows is the agent's own
	answerUnfit      = "unfit"  // NEXT REASON: this place does not do; go on from the number NEXT
	answerNone       = "none"   // there are no more places
)

// deliver brings the agent to one place after the other until it runs. a, if
// any, is at the first of them already.
func (d *delivery) deliver(ctx context.Context, sudo sudo, a *agentSource) (imaging.Source, error) {
	var refused []string
	for from := 0; ; a = nil {
		var err error
		if a == nil {
			if a, err = d.start(ctx, d.courier(from, sudo.prefix)); err != nil {
				return nil, err
			}
		}
		if err = d.hand(ctx, a); err == nil {
			return d.meet(ctx, a, sudo.password)
		}
		err = errors.Join(err, a.Close())
		var unfit *unfitError
		if !errors.As(err, &unfit) {
			return nil, err
		}
		if unfit.reason != "" {
			refused = append(refused, unfit.reason)
		}
		if from = max(from+1, unfit.next); from >= len(places) {
			return nil, d.noPlace(refused)
		}
	}
}

func (d *delivery) noPlace(refused []string) error {
	why := ""
	if len(refused) > 0 {
		why = " (" + strings.Join(refused, "; ") + ")"
	}
	return &remedied{
		fmt.Errorf("%s has no place to run the agent from: every one of %s is read-only, full, or mounted noexec%s", d.conn.host.alias, strings.Join(places[:], ", "), why),
		"install doppel's agent there as " + installedAgent + ", or capture with --sftp, which carries less",
	}
}

// unfitError says that the agent cannot be kept in, or run from, a place.
type unfitError struct {
	reason string
	next   int // the place to try then
}

func (e *unfitError) Error() string { return "unfit: " + e.reason }

// hand gives the agent to courier and waits until it runs.
func (d *delivery) hand(ctx context.Context, a *agentSource) error {
	how, err := d.expect(ctx, a, greeting, answerSend, answerSendPacked)
	if err != nil {
		return err
	}
	if d.packing.Wait(); d.fault != nil {
		return d.fault
	}
	sent := d.binary
	if how == answerSendPacked {
		sent = d.packed
	}
	unhook := context.AfterFunc(ctx, a.giveUp)
	defer unhook()
	_, err = fmt.Fprintln(a.session, len(sent), len(d.binary))
	for piece := range slices.Chunk(sent, 64<<10) {
		if err != nil || ctx.Err() != nil {
			break // the answer says why nobody reads
		}
		_, err = a.session.Write(piece)
	}
	_, err = d.expect(ctx, a, settling, answerReady)
	return err
}

// expect waits for courier's next answer, which is to be one of those.
func (d *delivery) expect(ctx context.Context, a *agentSource, limit time.Duration, want ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s did not take delivery of the agent within %v", d.conn.host.alias, limit))
	defer cancel()
	unhook := context.AfterFunc(ctx, a.giveUp)
	answer, _, err := a.nextAnswer()
	unhook()
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		return "", d.undelivered(a, err)
	case slices.Contains(want, answer):
		return answer, nil
	case answer == answerNone:
		return "", &unfitError{next: len(places)}
	}
	return "", d.refused(answer)
}

// refused reads the answer that a place does not do.
func (d *delivery) refused(answer string) error {
	words := strings.SplitN(answer, " ", 3)
	if len(words) == 3 && words[0] == answerUnfit {
		if next, err := strconv.Atoi(words[1]); err == nil {
			return &unfitError{reason: cutText(printable(words[2]), 300), next: next}
		}
	}
	return fmt.Errorf("bring the agent to %s: the answer %q makes no sense", d.conn.host.alias, cutText(printable(answer), 300))
}

// undelivered finds out why no answer came.
func (d *delivery) undelivered(a *agentSource, err error) error {
	a.giveUp()
	if d.conn.waitEnd(grace / 10) {
		return d.conn.lost("the agent was copied")
	}
	select {
	case <-a.session.ended:
		a.reading.Wait()
		if e := a.session.result(); e != nil {
			err = e
		}
	default:
	}
	said := a.stderr.String()
	if said == "" {
		said = "it said nothing"
	}
	return fmt.Errorf("bring the agent to %s: the shell ended early: %w: %s", d.conn.host.alias, err, said)
}

// maxAnswers bounds what may come before an answer.
const maxAnswers = 256 << 10

// nextAnswer reads the session's output up to the next marked line. What comes
// before it is a login shell's chatter.
func (a *agentSource) nextAnswer() (answer string, chatter []byte, err error) {
	line := 0 // where it begins
	for range maxAnswers {
		b, err := a.out.ReadByte()
		if err != nil {
			return "", chatter, err
		}
		if chatter = append(chatter, b); b != '\n' {
			continue
		}
		if _, answer, ok := bytes.Cut(bytes.TrimSpace(chatter[line:]), []byte(marker)); ok {
			return string(answer), chatter[:line], nil
		}
		line = len(chatter)
	}
	return "", chatter, fmt.Errorf("no answer in the first %d bytes", maxAnswers)
}

// cutText is the first max bytes of a text.
func cutText(s string, max int) string { return s[:min(len(s), max)] }
