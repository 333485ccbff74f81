#![no_main]

collector_fuzz::target!("btf");
