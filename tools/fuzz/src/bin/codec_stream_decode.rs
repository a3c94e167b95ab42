//! Fuzz target: see `dwcp_fuzz::codec::decode_stream`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::codec::decode_stream(data));
