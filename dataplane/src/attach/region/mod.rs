//! The region attach point: memory given by descriptor, sent in rounds, written in place at the
//! sink.

mod pending;
mod read_back;
mod scratch;
mod sink;
mod source;

pub(crate) use read_back::ReadBack;
pub(crate) use scratch::Scratch;
pub(crate) use sink::{Applied, Check, RegionSink, class_counter};
pub(crate) use source::{Answer, CodedExtent, RegionSource, Step};
