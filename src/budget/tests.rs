//! The budget's arithmetic.

use super::*;
use crate::settings::value::GIB;

fn machine() -> Machine {
    Machine {
        memory_bytes: 16 * GIB,
        lockable_bytes: u64::MAX,
        descriptors_max: 65_536,
        cores: vec![0, 1, 2, 3],
    }
}

fn config(change: impl FnOnce(&mut DaemonConfig)) -> DaemonConfig {
    let mut config = crate::config::test_values().0;
    change(&mut config);
    config
}

#[test]
fn the_defaults_fit_and_the_parts_make_the_whole() {
    let config = config(|_| ());
    let budget = Budget::compute(&config, &machine()).expect("the defaults fit");
    let fixed = budget.arena_bytes * budget.shards as u64 + budget.windows_bytes + CONTROL_BYTES;
    let fixed = fixed + budget.store_bytes;
    assert_eq!(fixed + budget.sessions_bytes, config.memory_bytes);
    let receive = (budget.streams_per_shard * SLOTS_PER_STREAM) as u64 * slot_bytes();
    assert!(budget.arena_bytes - receive <= SEND_BYTES_AUTO);
    let slots = budget.send_slots + budget.streams_per_shard * SLOTS_PER_STREAM;
    assert_eq!(slots as u64 * slot_bytes(), budget.arena_bytes);
}

#[test]
fn auto_shrinks_to_the_limit_of_locked_memory_and_refuses_below_the_least() {
    let small = |lockable_bytes| Machine { lockable_bytes, ..machine() };
    let config = config(|config| {
        config.links_max = 1;
        config.finds_streams = false;
        config.lock_memory = LockMemory::Require;
    });
    let budget = Budget::compute(&config, &small(8 * MIB)).expect("8 MiB are enough for one link");
    assert!(budget.arena_bytes <= 8 * MIB, "{budget:?}");
    assert!(budget.lock_memory);
    let errors = Budget::compute(&config, &small(MIB)).unwrap_err();
    assert!(errors.to_string().contains("ulimit -l"), "{errors}");
    assert_eq!(errors.exit(), crate::exit::Exit::Machine);
}

#[test]
fn try_goes_on_unlocked_where_the_limit_forbids_it() {
    let machine = Machine { lockable_bytes: MIB, ..machine() };
    let budget = Budget::compute(&config(|_| {}), &machine).expect("try does not refuse");
    assert!(!budget.lock_memory);
    assert!(Budget::compute(&config(|_| {}), &self::machine()).unwrap().lock_memory);
}

#[test]
fn a_refusal_writes_the_arithmetic_out() {
    let config = config(|config| {
        config.memory_bytes = 256 * MIB;
        config.cores = vec![0, 1];
        config.arena_bytes = Some(64 * MIB);
    });
    let errors = Budget::compute(&config, &machine()).unwrap_err();
    let text = errors.to_string();
    assert!(text.starts_with("2 shards x "), "{text}");
    assert!(text.contains("4 links x 64MiB window + 32MiB control = "), "{text}");
    assert!(text.contains("but --memory is 256MiB: raise --memory to "), "{text}");
    assert_eq!(errors.exit(), crate::exit::Exit::Usage);
}

#[test]
fn following_the_cure_makes_the_budget_fit() {
    let tight = config(|config| config.memory_bytes = 64 * MIB);
    let errors = Budget::compute(&tight, &machine()).unwrap_err();
    let [BudgetError::Memory { sum, sessions_bytes_min, .. }] = errors.0.as_slice() else {
        panic!("{errors}");
    };
    let cured = (sum.total() + sessions_bytes_min).next_multiple_of(MIB);
    let config = config(|config| config.memory_bytes = cured);
    Budget::compute(&config, &machine()).expect("the cure helps");
}

#[test]
fn everything_that_does_not_fit_is_named_at_once() {
    let config = config(|config| {
        config.cores = vec![1, 9];
        config.arena_bytes = Some(4 * MIB);
        config.memory_bytes = 32 * GIB;
    });
    let machine = Machine { descriptors_max: 256, ..machine() };
    let text = Budget::compute(&config, &machine).unwrap_err().to_string();
    for part in ["core 9", "--arena is 4MiB", "16GiB: lower --memory", "limit is 256"] {
        assert!(text.contains(part), "'{part}' is missing in:\n{text}");
    }
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn bases_are_a_share_of_what_sessions_have() {
    let budget = Budget::compute(&config(|_| ()), &machine()).expect("the defaults fit");
    let half = budget.base_pages_max(Share::Percent(50)) * PAGE_BYTES as u64;
    assert!(half <= budget.sessions_bytes / 2 && half > budget.sessions_bytes / 2 - MIB);
    let more = budget.base_pages_max(Share::Bytes(u64::MAX)) * PAGE_BYTES as u64;
    assert!(more <= budget.sessions_bytes);
}

#[test]
fn a_link_has_room_for_as_many_streams_as_may_be_found_to_help_and_many_links_share_it() {
    let per_shard = |links_max, finds_streams, cores: Vec<usize>| {
        let config = config(|config| {
            (config.links_max, config.finds_streams, config.cores) =
                (links_max, finds_streams, cores);
            config.memory_bytes = 8 * GIB;
        });
        Budget::compute(&config, &machine()).expect("it fits").streams_per_shard
    };
    assert_eq!(per_shard(4, true, vec![]), 4 * 64);
    assert_eq!(per_shard(1, true, vec![]), 64);
    assert_eq!(per_shard(8, true, vec![]), 8 * 32);
    assert_eq!(per_shard(64, true, vec![]), 64 * 16);
    assert_eq!(per_shard(4, true, vec![0, 1]), 4 * 32, "shared by the shards");
    assert_eq!(per_shard(4, false, vec![]), 4 * 16, "a number that is set by hand stays");
}
