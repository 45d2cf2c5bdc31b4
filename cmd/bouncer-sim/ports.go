package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// checkPort reports a port on which we cannot listen: who holds it, as far as that can be seen, and how to choose
// another. An empty host stands for all addresses; override is the command that chooses, to which a port is added.
func checkPort(host string, port int, purpose, override string) error {
	err := tryPort(host, port)
	if err == nil {
		return nil
	}
	// The registered ports below the ones that the system gives to clients: likely free, and ours to use.
	const lowest, highest = 1024, 32767
	other := min(max(port+1, lowest), highest)
	for other < highest && tryPort(host, other) != nil {
		other++
	}
	another := fmt.Sprintf("choose another port: %s%d", override, other)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		holder := holderOf(port)
		hint := "stop it"
		if strings.HasPrefix(holder, "mosquitto ") {
			hint = "stop it (systemctl stop mosquitto, if it is the system's)"
		}
		return fmt.Errorf("port %d, for the %s, is in use by %s; %s or %s", port, purpose, holder, hint, another)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %d, for the %s, is only for root; %s", port, purpose, another)
	default:
		return fmt.Errorf("port %d, for the %s: %w; %s", port, purpose, err, another)
	}
}

// tryPort listens for a moment.
func tryPort(host string, port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return listener.Close()
}

// holderOf names the process that listens on a TCP port, as well as /proc shows it to this account.
func holderOf(port int) string {
	unknown := fmt.Sprintf("another program (sudo ss -ltnp 'sport = :%d' names it)", port)
	inode := listeningInode(port)
	if inode == "" {
		return unknown
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return unknown
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			return unknown
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return unknown
}

// listeningInode is the inode of a socket that listens on a TCP port, empty when there is none (proc(5), /proc/net/tcp).
func listeningInode(port int) string {
	const (
		local  = 1
		state  = 3
		inode  = 9
		listen = "0A"
	)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			columns := strings.Fields(line)
			if len(columns) > inode && columns[state] == listen && strings.HasSuffix(columns[local], fmt.Sprintf(":%04X", port)) {
				return columns[inode]
			}
		}
	}
	return ""
}
