package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pkg/sftp"
)

// noSFTPError says that the host has no SFTP subsystem.
type noSFTPError struct {
	host string
	err  error
}

func (e *noSFTPError) Error() string {
	return fmt.Sprintf("%s offers no SFTP (Subsystem sftp in its sshd_config): %v", e.host, e.err)
}
func (e *noSFTPError) Unwrap() error { return e.err }

// sftpClient is an SFTP client with the session it runs over.
type sftpClient struct {
	*sftp.Client
	session *session
	guard   *sftpGuard
}

// openSFTP starts the SFTP subsystem in a session of its own, which ends with
// ctx.
func (c *Conn) openSFTP(ctx context.Context) (*sftpClient, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	var client *sftp.Client
	guard := &sftpGuard{r: s, most: maxSFTPListing}
	if err = s.request("subsystem", "sftp"); err == nil {
		client, err = sftp.NewClientPipe(guard, input{s})
	}
	if err == nil {
		return &sftpClient{Client: client, session: s, guard: guard}, nil
	}
	s.release()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case c.waitEnd(grace / 10):
		return nil, c.lost("starting SFTP")
	}
	return nil, &noSFTPError{host: c.host.alias, err: err}
}

// close ends the subsystem and waits until it has ended.
func (x *sftpClient) close() error {
	err := x.session.CloseWrite()
	x.session.finish(grace)
	x.session.release()
	x.Client.Close() // its stream has ended: nothing of it can fail any more
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
