#![no_main]

collector_fuzz::target!("eh_frame");
