//! All of the control thread's doing: the loop, and the core that carries out what was decided.
//!
//! [`run()`] owns the thread. Tasks of clients, peers and the journal only hand inputs over bounded
//! queues to the one core; the core alone changes state and answers.

mod carry;
mod carry_channels;
mod carry_parked;
mod carry_run;
mod carry_sink;
mod carry_source;
mod core;
mod draining;
mod families;
mod held;
mod kept;
mod lanes;
mod last_words;
mod links;
mod opening;
mod parking;
mod placement;
mod reconnect;
mod reports;
mod requests;
mod room;
mod run;
mod sessions;
mod shards;
mod stream_options;
#[cfg(test)]
mod tests;
mod tuned;
mod views;
mod vm_begin;
mod vm_end;
mod vm_host;
mod vm_news;
mod vm_opening;
mod vm_progress;
mod vm_recover;
mod vm_sink;
mod vms;

pub use carry_run::carry;
pub use run::run;
