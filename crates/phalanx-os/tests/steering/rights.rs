//! With which rights it works.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use phalanx_os::listener;
use phalanx_os::steer::allows::{self, Tried};
use phalanx_os::steer::{self, Even, Exact, Group, Rule, Transport};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::{BACKLOG, Steered, queued, skip};

/// Runs in a thread that has these capabilities only; the others keep theirs.
fn with(rights: CapabilitySet, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let drop_and_test = || {
            let sets =
                CapabilitySets { effective: rights, permitted: rights, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            test();
        };
        let outcome = scope.spawn(drop_and_test).join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn has_bpf() -> bool {
    capabilities(None).unwrap().effective.contains(CapabilitySet::BPF)
}

#[test]
fn everything_works_with_cap_bpf_alone() {
    if !has_bpf() {
        return skip("no CAP_BPF");
    }
    with(CapabilitySet::BPF, || {
        for transport in [Transport::Tcp, Transport::Udp] {
            for rule in [Rule::Rotate, Rule::Sticky, Rule::Least] {
                if let Err(e) = Exact::load(transport, rule) {
                    panic!("{transport:?} {rule:?}: {e}\n{}", e.verifier.as_deref().unwrap_or_default());
                }
            }
        }
        let mut steered = Steered::new(Rule::Rotate, 2).expect("not skipped: there is CAP_BPF");
        steered.exact.ring(&[0, 1]);
        let _clients = steered.connect(10);
        assert_eq!(steered.queues(10), [5, 5]);
        let open = steered.exact.open_connections().unwrap();
        assert_eq!(open.values().map(|count| count.queued).sum::<u32>(), 10);
    });
}

#[test]
fn what_exists_is_used_without_any_right() {
    let Some(mut steered) = Steered::new(Rule::Rotate, 2) else { return };
    with(CapabilitySet::empty(), || {
        assert_eq!(
            Exact::load(Transport::Tcp, Rule::Rotate).unwrap_err().source.raw_os_error(),
            Some(libc::EPERM)
        );
        let error = steered.exact.open_connections().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        steered.exact.ring(&[0, 1]);
        let _clients = steered.connect(10);
        assert_eq!(steered.queues(10), [5, 5]);
        steered.exact.attach(&steered.members[1]).unwrap();
        steered.exact.ring(&[1]);
        crate::settle();
        steer::flush(&steered.members[0], BACKLOG).unwrap();
        assert_eq!(steered.queues(10), [0, 10]);
        assert_eq!(steered.exact.cookie(0).unwrap(), None);
        steered.set(0);
        steered.members.push(steered.group.join().unwrap());
        steered.set(2);
        steered.exact.ring(&[2]);
        let _more = steered.connect(3);
        assert_eq!(steered.queues(13), [0, 10, 3]);
        steered.exact.clear(2).unwrap();
    });
}

/// From now on this thread, and what it forks, gets this for `bpf(2)`.
#[expect(unsafe_code, reason = "a seccomp filter is given by its address")]
fn forbid_bpf(outcome: u32) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0), // the number of the call
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_bpf as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, outcome),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the filter is read by the call only; it concerns this thread.
    let rc = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(rc, 0);
}

#[test]
fn a_sandbox_that_kills_or_refuses_is_survived_and_named() {
    let survey = |outcome: u32| {
        std::thread::spawn(move || {
            forbid_bpf(outcome);
            allows::survey()
        })
        .join()
        .unwrap()
    };
    let killed = survey(libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!((killed.maps, killed.program), (Tried::Killed(libc::SIGSYS), Tried::NotReached));
    assert_eq!(killed.seccomp, Some(2));
    let refused = survey(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    assert_eq!((refused.maps, refused.program), (Tried::Refused(libc::ENOSYS), Tried::NotReached));
    assert_eq!(refused.kernel, killed.kernel);
}

#[test]
fn even_steering_needs_no_right_and_gives_to_the_enabled_only() {
    std::thread::scope(|scope| {
        let as_nobody = || {
            if rustix::process::geteuid().is_root() {
                let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            }
            assert!(!has_bpf());
            even_steering();
        };
        let outcome = scope.spawn(as_nobody).join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn even_steering() {
    let group = Group::open(Transport::Tcp, "127.0.0.1:0".parse().unwrap(), true, BACKLOG).unwrap();
    let mut even = Even::new();
    let mut members: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    let join = |even: &mut Even, members: &mut BTreeMap<u32, OwnedFd>, place| {
        members.insert(place, group.join().unwrap());
        even.joined(place);
    };
    let served = |members: &BTreeMap<u32, OwnedFd>| {
        let clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(group.address()).unwrap()).collect();
        let mut got: BTreeMap<u32, usize> = BTreeMap::new();
        while got.values().sum::<usize>() + queued(group.park()) < clients.len() {
            for (place, member) in members {
                while listener::accept(member).is_ok() {
                    *got.entry(*place).or_default() += 1;
                }
            }
        }
        got.into_keys().collect::<Vec<u32>>()
    };
    for place in 0..4 {
        join(&mut even, &mut members, place);
    }
    even.choose(&members[&0], &[0, 1, 3]).unwrap();
    assert_eq!(served(&members), [0, 1, 3]);
    // 3 takes the number of 1.
    members.remove(&1);
    even.left(1);
    even.choose(&members[&0], &[3]).unwrap();
    assert_eq!(served(&members), [3]);
    join(&mut even, &mut members, 4);
    even.choose(&members[&0], &[2, 4]).unwrap();
    assert_eq!(served(&members), [2, 4]);
    // A flush is a leave and a join.
    steer::flush(&members[&2], BACKLOG).unwrap();
    even.left(2);
    even.joined(2);
    even.choose(&members[&0], &[2, 0]).unwrap();
    assert_eq!(served(&members), [0, 2]);
    even.choose(&members[&0], &[]).unwrap();
    assert_eq!(served(&members), []);
}
