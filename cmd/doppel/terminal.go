package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// newLog is the log of a command: warnings and worse, for people.
func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// prompter asks the person at the terminal; nil where there is none.
func prompter(ctx context.Context) func(question string, echo bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	_ = tty.Close() // it was only looked for
	return func(question string, echo bool) (string, error) { return askTerminal(ctx, question, echo) }
}

// askTerminal asks a question on the terminal, wherever the standard streams
// go. The end of ctx ends the wait for the answer.
func askTerminal(ctx context.Context, question string, echo bool) (answer string, err error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	defer func() { err = errors.Join(err, tty.Close()) }()
	if !echo {
		restore, err := hide(tty)
		if err != nil {
			return "", fmt.Errorf("hiding what is typed: %w", err)
		}
		defer func() {
			restore()
			fmt.Fprintln(tty) // the answer's own line end was hidden, too
		}()
	}
	fmt.Fprint(tty, question)
	defer context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReader(tty).ReadString('\n')
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// hide turns the terminal's echo off.
func hide(tty *os.File) (restore func(), err error) {
	raw, err := tty.SyscallConn() // Fd would make reads deaf to deadlines
	if err != nil {
		return nil, err
	}
	var old *unix.Termios
	set := func(change func(t *unix.Termios)) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			if err != nil {
				inner = err
				return
			}
			if old == nil {
				old = new(*t)
			}
			change(t)
			inner = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
		})
		return errors.Join(err, inner)
	}
	if err := set(func(t *unix.Termios) { t.Lflag &^= unix.ECHO }); err != nil {
		return nil, err
	}
	return func() { _ = set(func(t *unix.Termios) { *t = *old }) }, nil
}

// confirm asks before something destructive, unless yes was given. Where there
// is no terminal there is nobody to ask: a script that names its targets means
// them.
func confirm(ctx context.Context, yes bool, question string) error {
	if yes || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	answer, err := askTerminal(ctx, question+" [y/N] ", true)
	if err != nil {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return &hintError{fmt.Errorf("not done: the answer was %q", answer), "answer y or yes, or give --yes"}
	}
	return nil
}

// printable writes a path so that no byte of it can do harm on a terminal.
func printable(p string) string {
	if !utf8.ValidString(p) || strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(p)
	}
	return p
}
