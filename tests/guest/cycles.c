// SPDX-License-Identifier: GPL-2.0
/*
 * A counter of cycles for guests whose CPUs have none. As those of real CPUs it has another frequency from moment to
 * moment, so that nothing keeps in step with it, and stands still while the CPU is idle; and it interrupts where
 * interrupts are off, too: QEMU's HPET (with -global hpet.msi=on) tells what its timers tell by messages, and a message
 * may be an interrupt that cannot be masked.
 *
 * For one CPU. Two events may count at a time, a third one finds no counter.
 */
#include <linux/hash.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/nmi.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <asm/hpet.h>
#include <asm/nmi.h>

#define COUNTERS 2

/* A moment, about: so many bits of nanoseconds. Cycles of a nanosecond are 2 to 5 then. */
#define MOMENT_BITS 22
#define CYCLES_PER_NS(now) (2 + hash_64((now) >> MOMENT_BITS, 2))

/* Where PCs have it; QEMU's counts by 10 ns. */
#define HPET_ADDRESS 0xfed00000
#define HPET_NS 10

/* The last of its timers, which the kernel does not use; how often it looks whether a counter has overflowed: not in step
 * with the kernel's ticks. */
#define TIMER 2
#define TIMER_NS 97130

/* Of messages: to the APIC whose number is 0, as an NMI (Intel SDM, volume 3, 11.11). */
#define MSI_ADDRESS 0xfee00000
#define MSI_NMI (4 << 8)

#define STOPPED (PERF_HES_STOPPED | PERF_HES_UPTODATE)

static void __iomem *hpet;
static struct perf_event *counting[COUNTERS];
static int (*overflow)(struct perf_event *, struct perf_sample_data *, struct pt_regs *);

/* What has passed since it was done last. The kernel has a place for what hardware had counted then. */
static void count(struct perf_event *event)
{
	u64 now = ktime_get_mono_fast_ns();
	u64 cycles = (now - local64_read(&event->hw.prev_count)) * CYCLES_PER_NS(now);

	local64_set(&event->hw.prev_count, now);
	if (is_idle_task(current))
		return;
	local64_add(cycles, &event->count);
	local64_sub(cycles, &event->hw.period_left);
}

/* The next overflow. */
static void reload(struct hw_perf_event *hwc)
{
	local64_add(hwc->sample_period, &hwc->period_left);
	if (local64_read(&hwc->period_left) <= 0)
		local64_set(&hwc->period_left, hwc->sample_period);
	hwc->last_period = hwc->sample_period;
}

static void look_at(struct perf_event *event, struct pt_regs *regs)
{
	struct hw_perf_event *hwc = &event->hw;
	struct perf_sample_data data;
	u64 period = hwc->last_period;

	count(event);
	if (!is_sampling_event(event) || local64_read(&hwc->period_left) > 0)
		return;
	reload(hwc);
	perf_sample_data_init(&data, 0, period);
	if (overflow(event, &data, regs))
		hwc->state = PERF_HES_STOPPED;
}

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	int at;

	for (at = 0; at < COUNTERS; at++) {
		struct perf_event *event = READ_ONCE(counting[at]);

		if (event && !event->hw.state)
			look_at(event, regs);
	}
	return NMI_HANDLED;
}

static void set_timer(bool on)
{
	u32 mode = HPET_TN_PERIODIC | HPET_TN_SETVAL | HPET_TN_32BIT | HPET_TN_FSB;

	writel(on ? mode | HPET_TN_ENABLE : 0, hpet + HPET_Tn_CFG(TIMER));
	if (!on)
		return;
	writel(readl(hpet + HPET_COUNTER) + TIMER_NS / HPET_NS, hpet + HPET_Tn_CMP(TIMER));
	writel(TIMER_NS / HPET_NS, hpet + HPET_Tn_CMP(TIMER));
}

static int cycles_event_init(struct perf_event *event)
{
	if (event->attr.type != PERF_TYPE_HARDWARE)
		return -ENOENT;
	if (event->attr.config != PERF_COUNT_HW_CPU_CYCLES || has_branch_stack(event))
		return -EOPNOTSUPP;
	if (!event->hw.sample_period) {
		event->hw.sample_period = S64_MAX;
		local64_set(&event->hw.period_left, S64_MAX);
	}
	return 0;
}

static void cycles_start(struct perf_event *event, int flags)
{
	struct hw_perf_event *hwc = &event->hw;

	/* Less is an overflow that was not looked at yet. */
	if (!local64_read(&hwc->period_left))
		reload(hwc);
	local64_set(&hwc->prev_count, ktime_get_mono_fast_ns());
	hwc->state = 0;
}

static void cycles_read(struct perf_event *event)
{
	if (!event->hw.state)
		count(event);
}

static void cycles_stop(struct perf_event *event, int flags)
{
	cycles_read(event);
	event->hw.state = STOPPED;
}

static int cycles_add(struct perf_event *event, int flags)
{
	int at;

	for (at = 0; at < COUNTERS && counting[at]; at++)
		;
	if (at == COUNTERS)
		return -EAGAIN;
	event->hw.state = STOPPED;
	event->hw.idx = at;
	WRITE_ONCE(counting[at], event);
	if (flags & PERF_EF_START)
		cycles_start(event, flags);
	if (!counting[!at])
		set_timer(true);
	return 0;
}

static void cycles_del(struct perf_event *event, int flags)
{
	int at = event->hw.idx;

	cycles_stop(event, flags);
	WRITE_ONCE(counting[at], NULL);
	if (!counting[!at])
		set_timer(false);
}

static struct pmu cycles = {
	.event_init = cycles_event_init,
	.add = cycles_add,
	.del = cycles_del,
	.start = cycles_start,
	.stop = cycles_stop,
	.read = cycles_read,
};

static int __init cycles_init(void)
{
	/* Modules are not given it; where it is, is told. */
	struct kprobe probe = { .symbol_name = "perf_event_overflow" };
	int error = register_kprobe(&probe);

	if (error)
		return error;
	overflow = (void *)probe.addr;
	unregister_kprobe(&probe);
	hpet = ioremap(HPET_ADDRESS, HPET_MMAP_SIZE);
	if (!hpet)
		return -ENOMEM;
	writel(MSI_NMI, hpet + HPET_Tn_ROUTE(TIMER));
	writel(MSI_ADDRESS, hpet + HPET_Tn_ROUTE(TIMER) + 4);
	writel(readl(hpet + HPET_CFG) | HPET_CFG_ENABLE, hpet + HPET_CFG);
	error = perf_pmu_register(&cycles, "cpu", PERF_TYPE_RAW);
	return error ?: register_nmi_handler(NMI_LOCAL, on_nmi, 0, "cycles");
}

module_init(cycles_init);
MODULE_DESCRIPTION("A counter of cycles for guests");
MODULE_LICENSE("GPL");
