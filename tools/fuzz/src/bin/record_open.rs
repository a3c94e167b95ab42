//! Fuzz target: see `dwcp_fuzz::wire::record_open`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::wire::record_open(data));
