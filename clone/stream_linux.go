package clone

import (
	"crypto/tls"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// streamPatience is how long the other end of a stream may give no sign of life
// before the stream has ended.
const streamPatience = time.Minute

// WatchStream has a connection end when its other end has gone without a word,
// as when its machine lost its power or a cable was pulled. By itself TCP waits
// a quarter of an hour for what it has sent to be acknowledged (tcp(7),
// tcp_retries2), and a node that waits so long does nothing else. What is no
// TCP is left as it is.
func WatchStream(c net.Conn) error {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(streamPatience/time.Millisecond))
	})
	const probes = 3
	return errors.Join(err, serr, t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: streamPatience / (probes + 1), Interval: streamPatience / (probes + 1), Count: probes}))
}
