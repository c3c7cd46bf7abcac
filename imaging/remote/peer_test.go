package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"doppel/imaging/wire"
	"golang.org/x/sys/unix"
)

// listen runs serve for every connection to a loopback port.
func listen(t *testing.T, serve func(net.Conn)) Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return Target{User: "root", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
}

// peer runs an SSH server of our own, for what a real sshd does not do.
func peer(t *testing.T, config *ssh.ServerConfig, serve func(*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request)) Target {
	t.Helper()
	signer, _ := newKey(t)
	config.AddHostKey(signer)
	return listen(t, func(raw net.Conn) {
		c, chans, reqs, err := ssh.NewServerConn(raw, config)
		if err != nil {
			return
		}
		defer c.Close()
		serve(c, chans, reqs)
	})
}

func waitPeer(c *ssh.ServerConn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	go ssh.DiscardRequests(reqs)
	for ch := range chans {
		ch.Reject(ssh.Prohibited, "no \x1b[2Jsessions")
	}
}

func bare(t *testing.T) Options {
	home := t.TempDir()
	return Options{Home: home, Config: "none", AgentSocket: "none", AcceptNew: true, KnownHosts: filepath.Join(home, "known"), Timeout: 10 * time.Second}
}

func TestKeyboardInteractive(t *testing.T) {
	target := peer(t, &ssh.ServerConfig{
		KeyboardInteractiveCallback: func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "Two\x1b]0;evil\x07 questions", []string{"Password: ", "Token: "}, []bool{false, true})
			if err == nil && (answers[0] != "secret" || answers[1] != "123456") {
				err = errors.New("no")
			}
			return nil, err
		},
	}, waitPeer)
	user := &scripted{answers: []string{"secret", "wrong", "secret", "123456"}}
	o := bare(t)
	o.Prompt = user.prompt
	c := dialHead(t, target, o)
	if !strings.Contains(user.questions[0], "Two") || !strings.HasSuffix(user.questions[0], "Password: ") || user.echoes[0] || !user.echoes[1] {
		t.Errorf("asked %q", user.questions)
	}
	if strings.ContainsAny(strings.Join(user.questions, ""), "\x1b\x07") {
		t.Errorf("control characters got through: %q", user.questions)
	}
	_, err := c.Run(t.Context(), "true")
	if err == nil || !strings.Contains(err.Error(), "MaxSessions") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("sessions are refused, and the error is %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	closed := Target{User: "root", Host: "127.0.0.1", Port: freePort(t)}
	dial := func(ctx context.Context, target Target, o Options) *DialError {
		t.Helper()
		_, err := Dial(ctx, target, o)
		var e *DialError
		if !errors.As(err, &e) || e.Hint() == "" {
			t.Fatalf("%T %v", err, err)
		}
		return e
	}
	if e := dial(t.Context(), closed, bare(t)); !errors.Is(e, syscall.ECONNREFUSED) || !strings.Contains(e.Hint(), "sshd") {
		t.Errorf("%v: %s", e, e.Hint())
	}
	if e := dial(t.Context(), Target{Host: "no-such-host.invalid"}, bare(t)); !strings.Contains(e.Hint(), "DNS") {
		t.Errorf("%v: %s", e, e.Hint())
	}
	short := bare(t)
	short.Timeout = 300 * time.Millisecond
	if e := dial(t.Context(), blackhole(t), short); !e.Timeout() || !strings.Contains(e.Hint(), "firewall") {
		t.Errorf("%v: %s", e, e.Hint())
	}
	silent := listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	if e := dial(t.Context(), silent, short); !e.Timeout() || !strings.Contains(e.Error(), "exchanging keys") {
		t.Errorf("%v: %s", e, e.Hint())
	}
	web := listen(t, func(c net.Conn) { io.WriteString(c, strings.Repeat("HTTP/1.1 400 Bad Request\r\n\r\n", 100)) })
	dial2 := func() error { _, err := Dial(t.Context(), web, bare(t)); return err }
	var e *DialError
	if err := dial2(); !errors.As(err, &e) {
		t.Errorf("%T %v", err, err)
	}
	hangup := listen(t, func(c net.Conn) {})
	if e := dial(t.Context(), hangup, bare(t)); !strings.Contains(e.Hint(), "hung up") {
		t.Errorf("%v: %s", e, e.Hint())
	}
}

// TestNoRoute dials from a network namespace that leads nowhere.
func TestNoRoute(t *testing.T) {
	needRoot(t)
	result := make(chan error)
	o := bare(t)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		_, err := Dial(t.Context(), Target{User: "root", Host: "192.0.2.1"}, o)
		result <- err
	}()
	err := <-result
	var e *DialError
	if !errors.As(err, &e) || !errors.Is(err, syscall.ENETUNREACH) || !strings.Contains(e.Hint(), "route") {
		t.Errorf("%v", err)
	}
}

// blackhole is a port that answers nothing: the kernel drops what comes for a
// queue that is full.
func blackhole(t *testing.T) Target {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := name.(*unix.SockaddrInet4).Port
	target := Target{User: "root", Host: "127.0.0.1", Port: port}
	for range 16 {
		d := net.Dialer{Timeout: 200 * time.Millisecond}
		c, err := d.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return target
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not fill")
	return target
}

func TestDialIsCancelled(t *testing.T) {
	reached := make(chan struct{})
	silent := listen(t, func(c net.Conn) {
		close(reached)
		io.Copy(io.Discard, c)
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go func() { <-reached; cancel(why) }()
	if _, err := Dial(ctx, silent, bare(t)); !errors.Is(err, why) {
		t.Error(err)
	}
}

// stuffed is a connection whose other end stops answering when told.
type stuffed struct {
	net.Conn
	stop chan struct{}
}

func (s *stuffed) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	select {
	case <-s.stop:
		// Everything that comes is swallowed, and nothing answered.
		_, err = io.Copy(io.Discard, s.Conn)
		if err == nil {
			err = io.EOF
		}
		return 0, err
	default:
		return n, err
	}
}

func TestDeadPeerIsNoticed(t *testing.T) {
	signer, _ := newKey(t)
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	stop := make(chan struct{})
	target := listen(t, func(raw net.Conn) {
		c, chans, reqs, err := ssh.NewServerConn(&stuffed{raw, stop}, config)
		if err != nil {
			return
		}
		defer c.Close()
		waitPeer(c, chans, reqs)
	})
	o := bare(t)
	o.KeepAlive = 300 * time.Millisecond
	c := dialHead(t, target, o)
	// As long as it answers, it lives.
	lives, cancel := context.WithTimeout(t.Context(), 10*o.KeepAlive)
	defer cancel()
	select {
	case <-c.Done():
		t.Fatalf("it ended: %v", c.Err())
	case <-lives.Done():
	}
	close(stop)
	<-c.Done()
	if !errors.Is(c.Err(), ErrPeerDead) {
		t.Error(c.Err())
	}
	_, err := c.Run(t.Context(), "true")
	var lost *LostError
	if !errors.As(err, &lost) || !errors.Is(err, ErrPeerDead) {
		t.Error(err)
	}
}

// A host that lets one in and then does not open a session does not hold up
// the end of a context.
func TestHangingSession(t *testing.T) {
	reached := make(chan struct{})
	target := peer(t, &ssh.ServerConfig{NoClientAuth: true}, func(c *ssh.ServerConn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
		go ssh.DiscardRequests(reqs)
		<-chans
		close(reached)
		c.Wait()
	})
	c := dialHead(t, target, bare(t))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	if _, err := c.Run(ctx, "true"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// execPeer answers commands with what answer gives.
func execPeer(t *testing.T, answer func(command string, ch ssh.Channel) (status uint32)) Target {
	return peer(t, &ssh.ServerConfig{NoClientAuth: true}, func(c *ssh.ServerConn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
		go ssh.DiscardRequests(reqs)
		for n := range chans {
			ch, reqs, err := n.Accept()
			if err != nil {
				return
			}
			go func() {
				defer ch.Close()
				for r := range reqs {
					var m struct{ What string }
					ssh.Unmarshal(r.Payload, &m)
					r.Reply(r.Type == "exec", nil)
					if r.Type == "exec" {
						status := answer(m.What, ch)
						ch.SendRequest("exit-status", false, ssh.Marshal(struct{ S uint32 }{status}))
						return
					}
				}
			}()
		}
	})
}

func TestOddHeads(t *testing.T) {
	for _, c := range []struct {
		name, uname, want string
		status            uint32
	}{
		{"another processor", marker + "Linux aarch64 0 ", "aarch64", 0},
		{"another system", marker + "FreeBSD amd64 0 ", "FreeBSD", 0},
		{"no commands", "This service allows sftp connections only.", "sftp connections only", 1},
		{"nonsense", marker + "x", "makes no sense", 0},
		{"no user", marker + "Linux x86_64 me", "names no user", 0},
		{"no place", marker + "Linux x86_64 0\n" + marker + answerNone, "has no place", 0},
		{"no answer", marker + "Linux x86_64 0\n" + marker + "unfit x", "makes no sense", 0},
		{"no shell", marker + "Linux x86_64 0 ", "status 9: no such program", 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := execPeer(t, func(command string, ch ssh.Channel) uint32 {
				switch {
				case strings.Contains(command, "uname"):
					io.WriteString(ch, c.uname+"\n")
					if c.status == 9 {
						io.WriteString(ch.Stderr(), "no such program")
					}
				}
				return c.status
			})
			conn := dialHead(t, target, bare(t))
			if _, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want …%s…", err, c.want)
			}
		})
	}
}

// An agent of a head that lies gives an error, and no agent.
func TestLyingHead(t *testing.T) {
	size := agentSize(t)
	for name, says := range map[string]string{
		"nothing":  "",
		"chatter":  "bash: warning\n",
		"flood":    strings.Repeat("y\n", 1<<16),
		"imposter": "\x00doppel\x01wire\x02\x20\x00\x00\x00\x23" + string(rune(wire.Version)) + "\x01x" + strings.Repeat("\x00", 32),
		"length":   "\x00doppel\x01wire\x02\x20\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			target := execPeer(t, func(command string, ch ssh.Channel) uint32 {
				switch {
				case strings.Contains(command, "uname"):
					io.WriteString(ch, marker+"Linux x86_64 0\n"+marker+answerSend+"\n")
					io.CopyN(io.Discard, ch, size)
					io.WriteString(ch, marker+answerReady+"\n")
					io.WriteString(ch, says)
					io.WriteString(ch.Stderr(), "its last words")
					if name == "imposter" {
						io.Copy(io.Discard, ch)
					}
					return 7
				}
				return 0
			})
			conn := dialHead(t, target, bare(t))
			src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
			if err == nil {
				src.Close()
				t.Fatal("it was believed")
			}
			if name == "nothing" && (!strings.Contains(err.Error(), "its last words") || !strings.Contains(err.Error(), "status 7")) {
				t.Error(err)
			}
			if name == "imposter" && !strings.Contains(err.Error(), "digest") {
				t.Error(err)
			}
		})
	}
}
