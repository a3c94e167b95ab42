//! The manual, as rustdoc: one module per chapter, each made from the Markdown file beside it.
//!
//! Text only: nothing here runs. The files are written for people who read them in the repository
//! or through `cargo doc`; the table of settings in the chapter on tuning is compared with the code
//! by a test of `settings::manual`.

#[doc = include_str!("architecture.md")]
pub(crate) mod architecture {}

#[doc = include_str!("wire.md")]
pub(crate) mod wire {}

#[doc = include_str!("control-api.md")]
pub(crate) mod control_api {}

#[doc = include_str!("tuning.md")]
pub(crate) mod tuning {}

#[doc = include_str!("troubleshooting.md")]
pub(crate) mod troubleshooting {}

#[doc = include_str!("integration.md")]
pub(crate) mod integration {
    #[doc = include_str!("integration/qemu.md")]
    pub(crate) mod qemu {}

    #[doc = include_str!("integration/carry.md")]
    pub(crate) mod carry {}

    #[doc = include_str!("integration/libvirt.md")]
    pub(crate) mod libvirt {}

    #[doc = include_str!("integration/wrappers.md")]
    pub(crate) mod wrappers {}
}

#[doc = include_str!("lab.md")]
pub(crate) mod lab {}

#[doc = include_str!("simulator.md")]
pub(crate) mod simulator {}

/// Why things are as they are: one short record per decision.
pub(crate) mod decisions {
    #[doc = include_str!("decisions/0001-dependencies.md")]
    pub(crate) mod dependencies {}

    #[doc = include_str!("decisions/0002-lanes.md")]
    pub(crate) mod lanes {}

    #[doc = include_str!("decisions/0003-acks-per-stream.md")]
    pub(crate) mod acks_per_stream {}

    #[doc = include_str!("decisions/0004-zstd-prefix-and-runs.md")]
    pub(crate) mod zstd_prefix_and_runs {}

    #[doc = include_str!("decisions/0005-page-hash-blake3.md")]
    pub(crate) mod page_hash_blake3 {}

    #[doc = include_str!("decisions/0006-journal-redb.md")]
    pub(crate) mod journal_redb {}

    #[doc = include_str!("decisions/0007-control-json.md")]
    pub(crate) mod control_json {}

    #[doc = include_str!("decisions/0008-zstd1-comparison.md")]
    pub(crate) mod zstd1_comparison {}

    #[doc = include_str!("decisions/0009-receive-single-shot.md")]
    pub(crate) mod receive_single_shot {}

    #[doc = include_str!("decisions/0010-lab-link-emulator.md")]
    pub(crate) mod lab_link_emulator {}

    #[doc = include_str!("decisions/0011-streams-in-total-order.md")]
    pub(crate) mod streams_in_total_order {}

    #[doc = include_str!("decisions/0012-parked-sessions.md")]
    pub(crate) mod parked_sessions {}

    #[doc = include_str!("decisions/0013-ahead-of-bbr.md")]
    pub(crate) mod ahead_of_bbr {}

    #[doc = include_str!("decisions/0014-level-by-link-and-core.md")]
    pub(crate) mod level_by_link_and_core {}

    #[doc = include_str!("decisions/0015-one-stream-while-it-is-enough.md")]
    pub(crate) mod one_stream_while_it_is_enough {}

    #[doc = include_str!("decisions/0016-page-versions-in-private-memory.md")]
    pub(crate) mod page_versions_in_private_memory {}

    #[doc = include_str!("decisions/0017-curb-on-startup.md")]
    pub(crate) mod curb_on_startup {}

    #[doc = include_str!("decisions/0018-long-window-of-128-mib.md")]
    pub(crate) mod long_window_of_128_mib {}

    #[doc = include_str!("decisions/0019-simulator.md")]
    pub(crate) mod simulator {}

    #[doc = include_str!("decisions/0020-number-of-streams-by-trial.md")]
    pub(crate) mod number_of_streams_by_trial {}

    #[doc = include_str!("decisions/0021-regions-wait-for-their-link.md")]
    pub(crate) mod regions_wait_for_their_link {}

    #[doc = include_str!("decisions/0022-carriers-wait-for-their-link.md")]
    pub(crate) mod carriers_wait_for_their_link {}

    #[doc = include_str!("decisions/0023-links-begin-on-different-shards.md")]
    pub(crate) mod links_begin_on_different_shards {}

    #[doc = include_str!("decisions/0024-store-of-known-pages.md")]
    pub(crate) mod store_of_known_pages {}

    #[doc = include_str!("decisions/0025-pages-both-ends-hold.md")]
    pub(crate) mod pages_both_ends_hold {}

    #[doc = include_str!("decisions/0026-pages-the-sink-alone-holds.md")]
    pub(crate) mod pages_the_sink_alone_holds {}

    #[doc = include_str!("decisions/0027-page-memory-ready-before-a-guest-moves.md")]
    pub(crate) mod page_memory_ready_before_a_guest_moves {}
}
