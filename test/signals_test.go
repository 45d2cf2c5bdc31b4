package test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/time/rate"

	"mosquitto-bouncer/test/harness"
	"mosquitto-bouncer/test/harness/broker"
	"mosquitto-bouncer/test/harness/device"
)

// TestSignalHandlersWithoutTicks looks at the broker's signal handlers where it never ticks: they use their own stack once
// the first message has been decided on.
func TestSignalHandlersWithoutTicks(t *testing.T) {
	t.Parallel()
	onMessage := strings.ReplaceAll(probe, "MOSQ_EVT_TICK", "MOSQ_EVT_MESSAGE") // the second, as there the second tick
	g := harness.New(t, broker.Options{
		Devices: []string{"sensor_001"}, PerListenerSettings: true, ListenerConf: "plugin {dir}/probe.so",
		Files: map[string]string{"probe.so": string(harness.CompilePlugin(t, "probe_message", onMessage))},
	})
	d := g.Device("sensor_001")
	c := g.Connect(d, harness.MQTT5)
	g.Accept(c, 1, d.Sign("1"))
	g.Accept(c, 1, d.Sign("2"))
	_, err := g.Broker.WaitLog(g.Limit(), 0, broker.Contains("probe: done"))
	g.Must(err)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		if g.Broker.Log().Count(0, broker.Contains(fmt.Sprintf("probe: signal=%d handled=1 onstack=1", sig))) != 1 {
			t.Errorf("the broker's handler of %v is not installed with SA_ONSTACK:\n\t%s", sig,
				strings.Join(g.Broker.Log().Find(0, broker.Contains("probe: ")), "\n\t"))
		}
	}
}

// On 2.0 the kernel gives the broker's signals to threads of Go's, whose goroutines have small stacks.
func TestSignals(t *testing.T) {
	const signals = 4000
	ids := harness.DeviceIDs(10)
	g := harness.New(t, broker.Options{Devices: ids, Quiet: true, Conf: "max_queued_messages 100000"})
	f := g.Fleet(ids)
	load := device.Load{Devices: f.Devices, Window: 20, Rate: 2000, Payload: []byte(harness.Payload)}
	report := g.During(load, func(ctx context.Context) error {
		return storm(ctx, g.Broker.Process(), signals, 1000, syscall.SIGUSR2, syscall.SIGHUP)
	})
	if report.Accepted < 1000 {
		g.Errorf("%d messages accepted while %d signals came: that is no load", report.Accepted, signals)
	}
	g.Settled(f, report, false)
	if g.Broker.Log().Count(0, broker.Contains("Reloading config")) == 0 {
		g.Error("SIGHUP had no effect")
	}
	t.Logf("%d signals, %d messages, p99 of PUBACK %v", signals, report.Accepted, report.Percentile(99))
}

// storm sends signals in turn, so many a second, and returns when they have been delivered. Each waits for the last of
// its kind to be delivered: of two that are pending the kernel would drop one.
func storm(ctx context.Context, p *broker.Process, n int, perSecond float64, signals ...syscall.Signal) error {
	limit := rate.NewLimiter(rate.Limit(perSecond), 1)
	for i := range n {
		sig := signals[i%len(signals)]
		err := limit.Wait(ctx)
		if err == nil {
			err = delivered(ctx, p, sig)
		}
		if err == nil {
			err = p.Signal(sig)
		}
		if err != nil {
			return fmt.Errorf("after %d signals: %w", i, err)
		}
	}
	for _, sig := range signals {
		if err := delivered(ctx, p, sig); err != nil {
			return err
		}
	}
	return nil
}

// delivered waits until a signal is not pending for a process.
func delivered(ctx context.Context, p *broker.Process, sig syscall.Signal) error {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "\nShdPnd:\t")
		hex, _, _ := strings.Cut(rest, "\n")
		pending, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return err
		}
		if pending&(1<<(sig-1)) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%v is not delivered: %w", sig, ctx.Err())
		}
	}
}

// probe is a plugin of its own that says how the broker's signal handlers are installed. It waits for the second tick:
// by then every other plugin has seen one.
const probe = `
#include <signal.h>
#include <stddef.h>
#include <mosquitto.h>
#include <mosquitto_broker.h>
#include <mosquitto_plugin.h>

static int on_tick(int event, void *data, void *userdata)
{
	static int ticks;
	const int signals[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

	(void)event; (void)data; (void)userdata;
	if(++ticks != 2) return MOSQ_ERR_SUCCESS;
	for(size_t i = 0; i < sizeof(signals)/sizeof(signals[0]); i++){
		struct sigaction a;
		sigaction(signals[i], NULL, &a);
		mosquitto_log_printf(MOSQ_LOG_NOTICE, "probe: signal=%d handled=%d onstack=%d", signals[i],
				a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN, (a.sa_flags & SA_ONSTACK) != 0);
	}
	mosquitto_log_printf(MOSQ_LOG_NOTICE, "probe: done");
	return MOSQ_ERR_SUCCESS;
}

int mosquitto_plugin_version(int n, const int *versions)
{
	(void)n; (void)versions;
	return 5;
}

int mosquitto_plugin_init(mosquitto_plugin_id_t *id, void **userdata, struct mosquitto_opt *options, int n)
{
	(void)userdata; (void)options; (void)n;
	return mosquitto_callback_register(id, MOSQ_EVT_TICK, on_tick, NULL, NULL);
}

int mosquitto_plugin_cleanup(void *userdata, struct mosquitto_opt *options, int n)
{
	(void)userdata; (void)options; (void)n;
	return MOSQ_ERR_SUCCESS;
}
`

func TestSignalHandlersUseTheirOwnStack(t *testing.T) {
	library := harness.CompilePlugin(t, "probe_tick", probe)
	b, err := broker.New(broker.Options{ListenerConf: "plugin {dir}/probe.so"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := b.WriteFile("probe.so", library); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	if _, err := b.WaitLog(ctx, 0, broker.Contains("probe: done")); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2} {
		if b.Log().Count(0, broker.Contains(fmt.Sprintf("probe: signal=%d handled=1 onstack=1", sig))) != 1 {
			t.Errorf("the broker's handler of %v is not installed with SA_ONSTACK:\n\t%s", sig,
				strings.Join(b.Log().Find(0, broker.Contains("probe: ")), "\n\t"))
		}
	}
	if err := b.Stop(); err != nil {
		t.Error(err)
	}
}
