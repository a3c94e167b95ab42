//! Tests with a kernel that refuses: seccomp filters and dropped capabilities of one test thread.

use super::*;
use nix::errno::Errno;

/// From now on the calling thread's `syscall` fails with `errno`. Other threads are not affected.
fn refuse(syscall: libc::c_long, errno: i32) {
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let done = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(load, 0, 0, 0),
        step(jump, 0, 1, syscall as u32),
        step(done, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(done, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the call takes integers only.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(no_new, 0);
    // SAFETY: the kernel copies the program, which lives over the call.
    let set = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    assert_eq!(set, 0, "{}", Errno::last());
}

/// Takes CAP_IPC_LOCK from the calling thread.
fn drop_lock_capability() {
    // linux/capability.h: version 3 has two words of each set; CAP_IPC_LOCK is 14.
    let mut header = [0x2008_0522u32, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the kernel reads the header and writes two triples of words to `sets`.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    assert_eq!(got, 0);
    sets[0][0] &= !(1 << 14);
    // SAFETY: the kernel reads the header and the two triples.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) };
    assert_eq!(set, 0);
}

/// Runs on a thread of its own, whose filters and capabilities end with it.
fn apart(test: impl FnOnce() + Send + 'static) {
    thread::spawn(test).join().unwrap();
}

fn ring_of(slots: usize) -> Result<Uring, UringError> {
    let arena = Arena::new(1 << 20, slots, false).unwrap();
    Uring::new(UringConfig::default(), &arena, &waker().unwrap().1)
}

#[test]
fn a_kernel_without_io_uring_is_named() {
    apart(|| {
        refuse(libc::SYS_io_uring_setup, libc::ENOSYS);
        assert!(matches!(Probe::run(), Err(UringError::Absent)));
        assert!(matches!(ring_of(1), Err(UringError::Absent)));
    });
}

#[test]
fn a_forbidden_io_uring_names_the_switch() {
    apart(|| {
        refuse(libc::SYS_io_uring_setup, libc::EPERM);
        let error = ring_of(1).unwrap_err();
        // The sysctl allows it on a machine that runs these tests, so the cure is elsewhere.
        let UringError::NotPermitted { disabled } = error else { panic!("{error}") };
        assert!(matches!(disabled, None | Some(0)), "{disabled:?}");
        assert!(error.to_string().contains("seccomp profile"), "{error}");
        let switched_off = UringError::NotPermitted { disabled: Some(2) };
        assert!(switched_off.to_string().contains("kernel.io_uring_disabled is 2; set it to 0"));
    });
}

#[test]
fn a_kernel_without_memory_is_named() {
    apart(|| {
        refuse(libc::SYS_io_uring_setup, libc::ENOMEM);
        assert!(matches!(ring_of(1), Err(UringError::NoMemory { .. })));
    });
}

#[test]
fn too_little_locked_memory_names_what_is_needed() {
    let limit = crate::sys::memlock_limit();
    if limit >= 512 << 20 {
        return eprintln!("passed over: the limit of locked memory is too high to exceed");
    }
    apart(move || {
        drop_lock_capability();
        let slots = (limit >> 20) as usize + 1;
        match ring_of(slots) {
            Err(UringError::LockedMemory { needed_bytes, limit_bytes }) => {
                assert_eq!((needed_bytes, limit_bytes), ((slots as u64) << 20, limit));
            }
            Err(error @ (UringError::Absent | UringError::NotPermitted { .. })) => {
                eprintln!("passed over: {error}");
            }
            other => panic!("{other:?}"),
        }
        let locked = Arena::new(1 << 20, slots, true);
        assert!(matches!(locked, Err(arena::ArenaError::LockedMemory { .. })), "{locked:?}");
    });
}

#[test]
fn a_full_queue_returns_the_lease_and_unreleased_memory_is_never_reused() {
    apart(|| {
        let config = UringConfig { entries: 2, ..UringConfig::default() };
        let Some(mut bench) = Bench::new(config, SLOT, 4) else { return };
        let ends: Vec<_> = (0..3).map(|_| bench.connect()).collect();
        bench.uring.poll(Wait::No, &mut |completion| panic!("{completion:?}")).unwrap();
        // From here on the kernel takes nothing from the queue and completes nothing.
        refuse(libc::SYS_io_uring_enter, libc::EAGAIN);
        bench.uring.recv(ends[0].0, bench.arena.lease().unwrap(), 0..SLOT).unwrap();
        bench.send(ends[1].0, 1, true);
        let lease = bench.arena.lease().unwrap();
        let slot = lease.slot();
        let Err(Full(lease)) = bench.uring.send(ends[2].0, lease, 0..SLOT, true) else {
            panic!("a full queue took a send")
        };
        assert_eq!(lease.slot(), slot);
        let Err(Full(lease)) = bench.uring.recv(ends[2].0, lease, 0..SLOT) else {
            panic!("a full queue took a receive")
        };
        drop(lease);
        assert_eq!(bench.uring.poll(Wait::No, &mut |_| ()).unwrap(), 0);
        // The kernel never lets go of the two: their slots must stay out of use for ever.
        let Bench { uring, arena, .. } = bench;
        drop(uring);
        assert_eq!(arena.free_slots(), 2);
    });
}

#[test]
fn a_multishot_receive_waits_for_room_in_the_queue() {
    apart(|| {
        let config = UringConfig { entries: 1, ..UringConfig::default() };
        let Some(mut bench) = Bench::new(config, SLOT, 1) else { return };
        let ends: Vec<_> = (0..4).map(|_| bench.connect()).collect();
        for (socket, far) in &ends {
            bench.uring.recv_multishot(*socket);
            (&*far).write_all(b"x").unwrap();
        }
        let seen = bench.until(|seen| seen.len() == 4);
        assert!(seen.iter().all(|s| matches!(s, Seen::Data(bytes) if bytes == b"x")), "{seen:?}");
    });
}
