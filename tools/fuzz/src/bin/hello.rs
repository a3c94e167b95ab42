//! Fuzz target: see `dwcp_fuzz::wire::hello`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::wire::hello(data));
