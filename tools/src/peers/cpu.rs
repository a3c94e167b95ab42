//! Processor time of other processes, from the kernel's own books.

use nix::unistd::{SysconfVar, sysconf};
use std::fs::read_to_string;

/// Fields behind the process's name: group, own time in user mode and kernel, the same of children
/// that have ended.
const GROUP: usize = 2;
const USER: usize = 11;
const KERNEL: usize = 12;
const CHILDREN_USER: usize = 13;
const CHILDREN_KERNEL: usize = 14;

/// The time that one process has used; 0 once it is gone.
pub(super) fn process_s(id: u32) -> f64 {
    let fields = fields(&id.to_string());
    seconds(fields.get(USER).copied().unwrap_or(0) + fields.get(KERNEL).copied().unwrap_or(0))
}

/// The time that a group of processes has used, with children of theirs that have ended.
pub(super) fn group_s(group: u32) -> f64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let all = ids.filter(|id| id.bytes().all(|byte| byte.is_ascii_digit())).map(|id| fields(&id));
    let ours = all.filter(|fields| fields.get(GROUP) == Some(&u64::from(group)));
    let ticks = ours.map(|fields| {
        [USER, KERNEL, CHILDREN_USER, CHILDREN_KERNEL]
            .iter()
            .filter_map(|at| fields.get(*at))
            .sum::<u64>()
    });
    seconds(ticks.sum())
}

/// The numbers of a process; a word that is none counts as 0.
fn fields(id: &str) -> Vec<u64> {
    let text = read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name stands in parentheses and may hold anything.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect()
}

fn seconds(ticks: u64) -> f64 {
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / rate as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_the_dead_take_none() {
        let before = process_s(std::process::id());
        let mut sum = 0_u64;
        while process_s(std::process::id()) <= before {
            sum = (0..100_000).fold(sum, |sum, it| std::hint::black_box(sum ^ it));
        }
        assert_eq!(process_s(u32::MAX), 0.0);
    }
}
