//! Fuzz target: see `dwcp_fuzz::qemu::stream`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::qemu::stream(data));
