#![no_main]

collector_fuzz::target!("netlink");
