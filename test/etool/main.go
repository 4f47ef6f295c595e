// Command etool is all that is in the image of the tests' pods:
//
//	etool serve            answer on HTTP 8080, TCP echo 8081, UDP echo 8082, TCP sink 8083
//	etool probe URL...     try every URL (http, tcp, udp, dns), one line of JSON each
//	etool hold N ADDR      keep N TCP connections to an echo busy; HTTP 8090 tells of them
//	etool push SECONDS ADDR    send to a sink as fast as it goes; print bits per second, once its burst is over
//	etool sleep
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	// Process 1 of a container gets no default handling of SIGTERM.
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	go func() {
		<-c
		os.Exit(0)
	}()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	number := func() (int, error) {
		if len(args) != 3 {
			return 0, fmt.Errorf("%s: want a number and an address", args[0])
		}
		return strconv.Atoi(args[1])
	}
	switch {
	case len(args) == 0:
		return fmt.Errorf("want serve, probe, hold, push or sleep")
	case args[0] == "serve":
		return serve()
	case args[0] == "probe":
		return probe(args[1:])
	case args[0] == "hold":
		n, err := number()
		if err != nil {
			return err
		}
		return hold(n, args[2])
	case args[0] == "push":
		n, err := number()
		if err != nil {
			return err
		}
		return push(time.Duration(n)*time.Second, args[2])
	case args[0] == "sleep":
		select {}
	}
	return fmt.Errorf("%q: want serve, probe, hold, push or sleep", args[0])
}
