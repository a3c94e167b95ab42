//! Fuzz target: see `dwcp_fuzz::control::framing`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::control::framing(data));
