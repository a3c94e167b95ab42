//! A guest at one host and the QEMU at the other that waits for it, both watched.

use super::harness::{At, Hosts, MOVE_MAX};
use super::referee::{Referee, Watched};
use crate::harness::wait_until;
use dwcp_tools::lab::{Guest, Vm, ram};
use std::time::Duration;

/// A guest on its way.
pub(super) struct Pair<'a> {
    pub(super) guest: &'a Guest,
    /// Where it is.
    pub(super) from: At,
    pub(super) source: Vm,
    pub(super) sink: Vm,
    /// Words of every QEMU that holds it.
    options: &'a [&'a str],
    referee: Referee,
    watched: [Watched; 2],
}

impl<'a> Pair<'a> {
    /// Boots a guest at a host, with a QEMU that waits for it at the other.
    pub(super) fn boot(hosts: &Hosts, guest: &'a Guest, from: At) -> Self {
        Self::boot_with(hosts, guest, from, &[], &[])
    }

    /// Like [`Self::boot`], with further words for QEMU, and those that only the sink's has.
    pub(super) fn boot_with(
        hosts: &Hosts,
        guest: &'a Guest,
        from: At,
        options: &'a [&'a str],
        sinks: &[&str],
    ) -> Self {
        let sink = hosts.wait_at(guest, from.other(), &[options, sinks].concat());
        let source = hosts.boot(guest, from, options);
        Self::of(guest, from, options, (source, sink))
    }

    /// A guest that runs at a host, and the QEMU that waits for it at the other, both with these
    /// further words.
    pub(super) fn of(guest: &'a Guest, from: At, options: &'a [&'a str], vms: (Vm, Vm)) -> Self {
        let (mut source, mut sink) = vms;
        let mut referee = Referee::default();
        let watched = [
            referee.watch(from.host(), &mut source),
            referee.watch(from.other().host(), &mut sink),
        ];
        Self { guest, from, source, sink, options, referee, watched }
    }

    /// Where the guest goes.
    pub(super) fn to(&self) -> At {
        self.from.other()
    }

    /// What the referee knows now: no two have run the guest at one time. Returns how many run it.
    pub(super) fn look(&mut self) -> usize {
        let [source, sink] = self.watched;
        self.referee.look(source, &mut self.source);
        self.referee.look(sink, &mut self.sink);
        self.referee.check();
        self.referee.running()
    }

    /// Ends the source's QEMU as a crash would.
    pub(super) fn kill_source(&mut self) {
        self.look();
        self.source.kill();
        self.referee.gone(self.watched[0]);
    }

    /// Ends the sink's QEMU as a crash would.
    pub(super) fn kill_sink(&mut self) {
        self.look();
        self.sink.kill();
        self.referee.gone(self.watched[1]);
    }

    /// Both states, by asking; a QEMU that is gone is "gone".
    pub(super) fn states(&mut self) -> (String, String) {
        let state = |vm: &mut Vm| vm.qmp().status().unwrap_or_else(|_| "gone".to_owned());
        (state(&mut self.source), state(&mut self.sink))
    }

    /// Both memories are alike; both guests stand still.
    pub(super) fn assert_same_memory(&mut self) {
        let (source, sink) = self.states();
        assert!(source != "running" && sink != "running", "{source} {sink}");
        let (left, right) = (self.source.ram_file().unwrap(), self.sink.ram_file().unwrap());
        let differing = ram::differing_pages(&left, &right).unwrap();
        let first = &differing[..differing.len().min(20)];
        assert!(differing.is_empty(), "{} pages differ: {first:?}", differing.len());
    }

    /// The guest runs at the source, unhurt.
    pub(super) fn assert_runs_at_source(&mut self) {
        assert_eq!(self.source.qmp().status().unwrap(), "running");
        assert_eq!(self.look(), 1);
        check(&mut self.source);
    }

    /// The guest runs at the sink, unhurt.
    pub(super) fn assert_runs_at_sink(&mut self) {
        assert_eq!(self.sink.qmp().status().unwrap(), "running");
        assert_eq!(self.look(), 1);
        check(&mut self.sink);
    }

    /// The guest has arrived: its QEMU is the source of the next migration, to a new one.
    pub(super) fn turn(self, hosts: &Hosts) -> Self {
        let Self { guest, from, source, sink, options, .. } = self;
        drop(source);
        let waiting = hosts.wait_at(guest, from, options);
        hosts.attach_source(&sink, from.other());
        Self::of(guest, from.other(), options, (sink, waiting))
    }

    /// The guest stayed; a new QEMU waits for it.
    pub(super) fn renew_sink(self, hosts: &Hosts) -> Self {
        let Self { guest, from, source, sink, options, .. } = self;
        drop(sink);
        let waiting = hosts.wait_at(guest, from.other(), options);
        hosts.attach_source(&source, from);
        Self::of(guest, from, options, (source, waiting))
    }

    /// Waits until the source's guest stands still for the switchover.
    pub(super) fn wait_stopped(&mut self) {
        let stops = |vm: &mut Vm| {
            let events = vm.qmp().events().unwrap();
            events.iter().filter(|event| event.name == "STOP").count()
        };
        let before = stops(&mut self.source);
        wait_until("the source's STOP", MOVE_MAX, || stops(&mut self.source) > before);
    }

    /// Time from the source's last STOP to the sink's last RESUME.
    pub(super) fn blackout(&mut self) -> Duration {
        self.look();
        let stop = self.source.qmp().stamp_of("STOP").expect("it stopped");
        let resume = self.sink.qmp().stamp_of("RESUME").expect("it went on");
        resume.checked_sub(stop).expect("the guest ran twice")
    }
}

/// Two checks of all the guest's memory by the guest, or two ticks of one that has none.
fn check(vm: &mut Vm) {
    let word = if vm.serial().contains("VERIFY") { "VERIFY" } else { "TICK" };
    let said = vm.serial().matches(word).count();
    vm.wait_for_times(word, said + 2, MOVE_MAX).unwrap();
    assert_eq!(vm.trouble(), None, "{}", vm.serial());
}
