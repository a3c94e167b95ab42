//! Fuzz target: see `dwcp_fuzz::codec::decode`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::codec::decode(data));
