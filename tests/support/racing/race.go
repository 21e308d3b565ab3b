// race FOLDER UID SLOT TURNS: what race.mjs does. Built together with examples/go/counters.go.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	counters, uid := newCounters(os.Args[1]), os.Args[2]
	slot, _ := strconv.ParseInt(os.Args[3], 10, 64)
	turns, _ := strconv.Atoi(os.Args[4])
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	acknowledged := bufio.NewWriter(os.Stdout)
	defer acknowledged.Flush()
	for range turns {
		fence := time.Now().UnixMilli()*4000 + slot
		for range 3 {
			count, err := counters.add(uid, fence)
			if err == errRefused {
				break
			}
			if err != nil {
				panic(err)
			}
			fmt.Fprintln(acknowledged, fence, count)
		}
	}
}
