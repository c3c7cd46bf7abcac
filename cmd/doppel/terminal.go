package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// newLog is the log of a command: warnings and worse, for people.
func newLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// prompter asks the person at the terminal; nil where there is none.
func prompter() func(question string, echo bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	tty.Close()
	return askTerminal
}

func askTerminal(question string, echo bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("asking on the terminal: %w", err)
	}
	defer tty.Close()
	fmt.Fprint(tty, question)
	if !echo {
		b, err := term.ReadPassword(int(tty.Fd()))
		fmt.Fprintln(tty)
		return string(b), err
	}
	line, err := bufio.NewReader(tty).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// confirm asks before something destructive, unless yes was given. Without a
// terminal to ask on it refuses.
func confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("add --yes to do it without being asked", "%s: there is no terminal to ask on", question)
	}
	answer, err := askTerminal(question+" [y/N] ", true)
	if err != nil {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return &hintError{fmt.Errorf("not done: the answer was %q", answer), ""}
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
