//! Fuzz target: see `dwcp_fuzz::codec::stream_round_trip`.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dwcp_fuzz::codec::stream_round_trip(data));
