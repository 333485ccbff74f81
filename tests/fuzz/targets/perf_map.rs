#![no_main]

collector_fuzz::target!("perf_map");
