//! Both tasks against a scripted QEMU that dies or refuses at every command in turn. What is
//! checked each time: the task ends, it says what happened, `cont` is given only when it may be,
//! and the user's settings are back.

use super::fake::{Fake, Faults};
use super::rig::{SESSION, Task, run};
use crate::vm::{
    GuestState, MigrateOptions, OnTimeout, SavedSettings, VmNews, VmOrder, VmTarget, spawn_sink,
    spawn_source,
};

fn source(fake: &Fake, saved: Option<SavedSettings>) -> Task {
    let target = VmTarget::Monitor { qmp: fake.qmp.clone() };
    Task::new(|reports| spawn_source(SESSION, target, saved, reports))
}

fn sink(fake: &Fake, saved: Option<SavedSettings>) -> Task {
    let target = VmTarget::Monitor { qmp: fake.qmp.clone() };
    Task::new(|reports| spawn_sink(SESSION, target, saved, reports))
}

fn begin(fake: &Fake, on_timeout: OnTimeout) -> VmOrder {
    let options = MigrateOptions { on_timeout, ..MigrateOptions::default() };
    VmOrder::Begin { options, socket_path: fake.folder().join("out.d").join("out") }
}

fn prepare(fake: &Fake) -> VmOrder {
    VmOrder::Prepare { socket_path: fake.folder().join("in.d").join("in"), channels_max: 2 }
}

/// How a session went.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// The codes of all failures.
    failures: Vec<&'static str>,
    /// Everything was told that a good end needs, and the good order was given.
    is_good: bool,
    guest: GuestState,
}

/// A whole session of a source, as a core leads it: released when it completes, else kept.
async fn lead_source(fake: &Fake, mut task: Task) -> Outcome {
    let (mut failures, mut is_good) = (Vec::new(), false);
    let mut sockets = Vec::new();
    loop {
        match task.news().await {
            VmNews::Facts(_) => task.order(begin(fake, OnTimeout::Throttle)),
            VmNews::Channel { socket, .. } => sockets.push(socket),
            VmNews::Completed => {
                is_good = true;
                task.order(VmOrder::Release);
            }
            VmNews::Failed(error) => {
                failures.push(error.code());
                assert!(!error.cure().is_empty());
                // The task is over already when its ending failed.
                let _ = task.task.order(VmOrder::Keep);
            }
            VmNews::Ended { guest } => return Outcome { failures, is_good, guest },
            _ => {}
        }
    }
}

/// A whole session of a sink: resumed when it is loaded, else discarded.
async fn lead_sink(fake: &Fake, mut task: Task) -> Outcome {
    let (mut failures, mut is_good) = (Vec::new(), false);
    let mut sockets = Vec::new();
    loop {
        match task.news().await {
            VmNews::Facts(_) => task.order(prepare(fake)),
            VmNews::Channel { socket, .. } => sockets.push(socket),
            VmNews::Loaded => task.order(VmOrder::Resume),
            VmNews::Resumed { .. } => is_good = true,
            VmNews::Failed(error) => {
                failures.push(error.code());
                let _ = task.task.order(VmOrder::Discard);
            }
            VmNews::Ended { guest } => return Outcome { failures, is_good, guest },
            _ => {}
        }
    }
}

#[test]
fn a_good_migration_restores_every_setting_and_gives_cont_at_the_sink_alone() {
    run(async {
        for is_silent in [false, true] {
            let faults = Faults { is_silent, ..Faults::default() };
            let fake = Fake::new("running", faults);
            let before = settings(&fake);
            let outcome = lead_source(&fake, source(&fake, None)).await;
            assert!(outcome.is_good && outcome.failures.is_empty(), "{outcome:?}");
            assert_eq!((outcome.guest, fake.count("cont")), (GuestState::Empty, 0));
            assert_eq!(settings(&fake), before);
            assert!(!fake.folder().join("out.d").exists());

            let fake = Fake::new("inmigrate", faults);
            let before = settings(&fake);
            let outcome = lead_sink(&fake, sink(&fake, None)).await;
            assert!(outcome.is_good && outcome.failures.is_empty(), "{outcome:?}");
            assert_eq!((outcome.guest, fake.count("cont")), (GuestState::Running, 1));
            assert_eq!(settings(&fake), before);
            assert!(!fake.folder().join("in.d").exists());
        }
    });
}

fn settings(fake: &Fake) -> String {
    let state = fake.state.borrow();
    format!("{:?} {:?}", state.capabilities, state.parameters)
}

#[test]
fn a_qemu_that_dies_at_any_command_is_told_and_ends_the_task() {
    run(async {
        for dies_at in 1.. {
            let fake = Fake::new("running", Faults { dies_at: Some(dies_at), ..Faults::default() });
            let outcome = lead_source(&fake, source(&fake, None)).await;
            if !fake.state.borrow().is_dead {
                assert!(outcome.is_good && dies_at > 20, "{dies_at}: {outcome:?}");
                break;
            }
            // Dead after the release, it takes no more than settings along.
            assert!(outcome.is_good || !outcome.failures.is_empty(), "{dies_at}: {outcome:?}");
            assert_eq!(fake.count("cont"), 0, "{dies_at}");
        }
        for dies_at in 1.. {
            let faults = Faults { dies_at: Some(dies_at), ..Faults::default() };
            let fake = Fake::new("inmigrate", faults);
            let outcome = lead_sink(&fake, sink(&fake, None)).await;
            if !fake.state.borrow().is_dead {
                assert!(outcome.is_good && dies_at > 20, "{dies_at}: {outcome:?}");
                break;
            }
            assert!(outcome.is_good || !outcome.failures.is_empty(), "{dies_at}: {outcome:?}");
        }
    });
}

#[test]
fn a_refused_command_leaves_the_guest_running_at_the_source() {
    let commands = [
        "query-version",
        "query-memory-size-summary",
        "query-migrate-capabilities",
        "migrate-set-capabilities",
        "migrate-set-parameters",
        "migrate",
    ];
    run(async {
        for refuses in commands {
            let fake = Fake::new("running", Faults { refuses: Some(refuses), ..Faults::default() });
            let outcome = lead_source(&fake, source(&fake, None)).await;
            assert_eq!(outcome.failures, ["qmp_refused"], "{refuses}");
            assert_eq!(outcome.guest, GuestState::Running, "{refuses}");
            assert_eq!(fake.count("cont"), 0, "{refuses}");
        }
        for refuses in ["stop", "migrate-incoming", "query-version"] {
            let faults = Faults { refuses: Some(refuses), ..Faults::default() };
            let fake = Fake::new("inmigrate", faults);
            let outcome = lead_sink(&fake, sink(&fake, None)).await;
            assert_eq!(outcome.failures, ["qmp_refused"], "{refuses}");
            assert_eq!(fake.count("cont"), 0, "{refuses}");
        }
    });
}

#[test]
fn a_migration_begins_when_qemu_has_let_go_of_its_last_one() {
    run(async {
        let fake = Fake::new("running", Faults { clears_up_after: 5, ..Faults::default() });
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert!(outcome.is_good, "{outcome:?}");
        assert_eq!((fake.count("query-yank"), fake.count("migrate")), (5, 1));
    });
}

#[test]
fn a_qemu_that_never_lets_go_is_told_and_an_order_is_heard_meanwhile() {
    run(async {
        let faults = Faults { clears_up_after: usize::MAX, ..Faults::default() };
        let fake = Fake::new("running", faults);
        let mut task = source(&fake, None);
        task.facts().await;
        task.order(begin(&fake, OnTimeout::Abort));
        task.order(VmOrder::Cancel);
        let take = |news| match news {
            VmNews::Ended { guest } => Some(guest),
            _ => None,
        };
        assert_eq!(task.until(take).await, GuestState::Running, "without a failure");

        let fake = Fake::new("running", faults);
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert_eq!(outcome.failures, ["migration_lingers"]);
        assert_eq!((outcome.guest, fake.count("migrate")), (GuestState::Running, 0));
    });
}

#[test]
fn a_failed_migration_is_told_with_the_words_of_qemu() {
    run(async {
        let faults = Faults { fails: true, ..Faults::default() };
        let fake = Fake::new("running", faults);
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert_eq!(outcome.failures, ["migration_failed"]);
        assert_eq!(outcome.guest, GuestState::Running);
        let fake = Fake::new("inmigrate", faults);
        let outcome = lead_sink(&fake, sink(&fake, None)).await;
        assert_eq!((outcome.failures, outcome.guest), (vec!["load_failed"], GuestState::Gone));
        assert_eq!(fake.count("cont"), 0);
    });
}

#[test]
fn a_guest_that_runs_before_the_commit_is_stopped_and_told() {
    run(async {
        let fake = Fake::new("inmigrate", Faults { runs_at_once: true, ..Faults::default() });
        let outcome = lead_sink(&fake, sink(&fake, None)).await;
        assert_eq!(outcome.failures, ["runs_uncommitted"]);
        assert_eq!(outcome.guest, GuestState::Gone, "the stopped guest went with its QEMU");
        assert_eq!((fake.count("cont"), fake.count("stop")), (0, 2));
    });
}

#[test]
fn a_completed_source_that_is_kept_runs_again() {
    run(async {
        let fake = Fake::new("running", Faults::default());
        let mut task = source(&fake, None);
        task.facts().await;
        task.order(begin(&fake, OnTimeout::Abort));
        let _socket = task.channel().await;
        task.until(|news| matches!(news, VmNews::Completed).then_some(())).await;
        task.order(VmOrder::Keep);
        assert_eq!(task.ended().await, GuestState::Running);
        assert_eq!(fake.count("cont"), 1);
    });
}

#[test]
fn a_guest_that_its_user_has_paused_moves_and_is_never_started() {
    run(async {
        let fake = Fake::new("paused", Faults::default());
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert!(outcome.is_good && outcome.failures.is_empty(), "{outcome:?}");
        assert_eq!((outcome.guest, fake.count("cont")), (GuestState::Empty, 0));

        let fake = Fake::new("inmigrate", Faults::default());
        let mut task = sink(&fake, None);
        task.facts().await;
        task.order(prepare(&fake));
        let _socket = task.channel().await;
        task.until(|news| matches!(news, VmNews::Loaded).then_some(())).await;
        task.order(VmOrder::LeavePaused);
        assert_eq!((task.ended().await, fake.count("cont")), (GuestState::Paused, 0));

        // Whatever goes wrong, it stands at the source as it did before.
        let failing = Fake::new("paused", Faults { fails: true, ..Faults::default() });
        let outcome = lead_source(&failing, source(&failing, None)).await;
        assert_eq!(outcome.failures, ["migration_failed"]);
        assert_eq!((outcome.guest, failing.count("cont")), (GuestState::Paused, 0));
        for completed in [false, true] {
            let fake = Fake::new("paused", Faults::default());
            let mut task = source(&fake, None);
            task.facts().await;
            task.order(begin(&fake, OnTimeout::Abort));
            let _socket = task.channel().await;
            if completed {
                task.until(|news| matches!(news, VmNews::Completed).then_some(())).await;
            }
            task.order(if completed { VmOrder::Keep } else { VmOrder::Cancel });
            assert_eq!((task.ended().await, fake.count("cont")), (GuestState::Paused, 0));
        }
    });
}

#[test]
fn a_guest_that_is_paused_under_its_migration_stays_here_and_paused() {
    run(async {
        let fake = Fake::new("running", Faults { pauses: true, ..Faults::default() });
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert_eq!(outcome.failures, ["guest_stopped"]);
        assert_eq!((outcome.guest, fake.count("cont")), (GuestState::Paused, 0));
    });
}

#[test]
fn a_guest_that_was_paused_or_started_after_its_facts_is_not_moved_by_them() {
    run(async {
        for (before, now) in [("running", "paused"), ("paused", "running")] {
            let fake = Fake::new(before, Faults::default());
            let mut task = source(&fake, None);
            task.facts().await;
            fake.state.borrow_mut().run_state = now.to_owned();
            task.order(begin(&fake, OnTimeout::Abort));
            assert_eq!(task.failure().await.code(), "guest_changed");
            task.order(VmOrder::Keep);
            task.ended().await;
            assert_eq!((fake.count("migrate"), fake.count("cont")), (0, 0));
            assert_eq!(fake.state.borrow().run_state, now);
        }
    });
}

#[test]
fn after_a_daemons_death_only_what_it_had_touched_is_settled() {
    run(async {
        let touched = |paused| Some(SavedSettings { paused, ..SavedSettings::default() });
        for (run_state, saved, order, guest, conts) in [
            ("postmigrate", touched(false), VmOrder::Keep, GuestState::Running, 1),
            ("postmigrate", touched(true), VmOrder::Keep, GuestState::Paused, 0),
            ("postmigrate", None, VmOrder::Keep, GuestState::Empty, 0),
            ("postmigrate", touched(false), VmOrder::Release, GuestState::Empty, 0),
            ("running", touched(false), VmOrder::Keep, GuestState::Running, 0),
            ("paused", touched(false), VmOrder::Keep, GuestState::Paused, 0),
        ] {
            let fake = Fake::new(run_state, Faults::default());
            let mut task = source(&fake, saved);
            let what = format!("source {run_state} {order:?}");
            task.order(order);
            assert_eq!(task.ended().await, guest, "{what}");
            assert_eq!(fake.count("cont"), conts, "{what}");
        }
        for (run_state, saved, order, guest, conts) in [
            ("paused", Some(()), VmOrder::Resume, GuestState::Running, 1),
            ("running", Some(()), VmOrder::Resume, GuestState::Running, 0),
            ("inmigrate", Some(()), VmOrder::Resume, GuestState::Empty, 0),
            ("paused", Some(()), VmOrder::Discard, GuestState::Gone, 0),
            ("running", Some(()), VmOrder::Discard, GuestState::Running, 0),
            ("inmigrate", None, VmOrder::Discard, GuestState::Empty, 0),
        ] {
            let fake = Fake::new(run_state, Faults::default());
            let mut task = sink(&fake, saved.map(|()| SavedSettings::default()));
            let what = format!("sink {run_state} {order:?}");
            task.order(order);
            assert_eq!(task.ended().await, guest, "{what}");
            assert_eq!(fake.count("cont"), conts, "{what}");
        }
    });
}

#[test]
fn a_guest_or_a_sink_in_the_wrong_state_is_refused_untouched() {
    run(async {
        let fake = Fake::new("io-error", Faults::default());
        let outcome = lead_source(&fake, source(&fake, None)).await;
        assert_eq!(
            (outcome.failures, outcome.guest),
            (vec!["guest_not_running"], GuestState::Paused)
        );
        let fake = Fake::new("running", Faults::default());
        let outcome = lead_sink(&fake, sink(&fake, None)).await;
        assert_eq!(outcome.failures, ["not_incoming"]);
        assert_eq!((fake.count("stop"), fake.count("quit")), (0, 0));
    });
}

#[test]
fn a_task_whose_core_is_gone_touches_nothing() {
    run(async {
        let fake = Fake::new("running", Faults::default());
        let mut task = source(&fake, None);
        task.facts().await;
        let asked = fake.state.borrow().commands.len();
        drop(task);
        // The monitor is free again once the task has left it.
        let mut next = source(&fake, None);
        next.facts().await;
        assert_eq!(fake.state.borrow().commands.len(), 2 * asked);
        assert_eq!(fake.count("cont") + fake.count("migrate_cancel"), 0);
    });
}
