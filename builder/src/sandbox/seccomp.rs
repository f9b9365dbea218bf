//! Which system calls are refused to a step? Those that container runtimes refuse by default and that capabilities don't cover already.
//!
//! `clone3` answers "not implemented", since its flags can't be looked at; libraries then use `clone`. The others answer "not permitted".
//!
//! 32-bit programs on x86-64 have numbers of their own, and filters of their own. A program for any other kernel interface is killed.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::kernel;

/// Refused whatever the arguments: keys of the kernel's key rings have no namespace, and the rest reaches past one.
const REFUSED: [libc::c_long; 32] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// The same in the numbers of 32-bit programs (`asm/unistd_32.h`), but for `kexec_file_load`, which they don't have; and what only they have: two clocks for times after 2038, and
/// the processor's 8086 mode.
#[cfg(target_arch = "x86_64")]
const REFUSED_I386: [libc::c_long; 35] = [
    51,  // acct
    286, // add_key
    357, // bpf
    343, // clock_adjtime
    405, // clock_adjtime64
    264, // clock_settime
    404, // clock_settime64
    129, // delete_module
    338, // fanotify_init
    350, // finit_module
    431, // fsconfig
    432, // fsmount
    430, // fsopen
    433, // fspick
    128, // init_module
    426, // io_uring_enter
    427, // io_uring_register
    425, // io_uring_setup
    283, // kexec_load
    288, // keyctl
    253, // lookup_dcookie
    429, // move_mount
    342, // open_by_handle_at
    428, // open_tree
    336, // perf_event_open
    217, // pivot_root
    131, // quotactl
    88,  // reboot
    287, // request_key
    346, // setns
    87,  // swapon
    374, // userfaultfd
    111, // vhangup
    166, // vm86
    113, // vm86old
];

/// TIOCSTI and TIOCLINUX put characters into a terminal's input (the C libraries disagree about the constants' type).
const TERMINAL_INJECTION: [u64; 2] = [0x5412, 0x541c];

/// Sockets to the hypervisor and other guests of a machine know no network namespace. What 32-bit programs ask of `socketcall` can't be looked at.
const REFUSED_FAMILY: libc::c_int = libc::AF_VSOCK;

/// A kernel interface: what the calls are called by that the rules are about.
struct Interface {
    /// The kernel's own name for it, where it isn't this program's.
    audit: Option<u32>,
    refused: &'static [libc::c_long],
    clone: libc::c_long,
    clone3: libc::c_long,
    ioctl: libc::c_long,
    socket: libc::c_long,
    unshare: libc::c_long,
}

const OURS: Interface = Interface {
    audit: None,
    refused: &REFUSED,
    clone: libc::SYS_clone,
    clone3: libc::SYS_clone3,
    ioctl: libc::SYS_ioctl,
    socket: libc::SYS_socket,
    unshare: libc::SYS_unshare,
};

#[cfg(target_arch = "x86_64")]
const I386: Interface = Interface {
    // EM_386, little-endian
    audit: Some(3 | 0x4000_0000),
    refused: &REFUSED_I386,
    clone: 120,
    clone3: 435,
    ioctl: 54,
    socket: 359,
    unshare: 310,
};

/// Each has filters of its own and passes those of the others.
#[cfg(target_arch = "x86_64")]
const INTERFACES: [Interface; 2] = [OURS, I386];
#[cfg(not(target_arch = "x86_64"))]
const INTERFACES: [Interface; 1] = [OURS];

/// Installs the filters for this process and all it will become. Needs CAP_SYS_ADMIN in the user namespace, and so leaves `no_new_privs` off.
pub(super) fn install() -> io::Result<()> {
    for interface in &INTERFACES {
        for (rules, errno) in [
            (refused(interface), libc::EPERM),
            (missing(interface), libc::ENOSYS),
        ] {
            kernel::set_filter(&program(interface, rules, errno)?)?;
        }
    }
    kernel::set_filter(&other_numbers())
}

type Rules = Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError>;

fn refused(interface: &Interface) -> Rules {
    let new_user_namespace = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let has_new_user = || {
        let operator = SeccompCmpOp::MaskedEq(new_user_namespace);
        SeccompRule::new(vec![SeccompCondition::new(
            0,
            SeccompCmpArgLen::Dword,
            operator,
            new_user_namespace,
        )?])
    };
    let refused = interface.refused.iter();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.map(|call| (*call, Vec::new())).collect();
    rules.insert(interface.unshare, vec![has_new_user()?]);
    rules.insert(interface.clone, vec![has_new_user()?]);
    let family = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        u64::from(REFUSED_FAMILY.cast_unsigned()),
    )?;
    rules.insert(interface.socket, vec![SeccompRule::new(vec![family])?]);
    let injection = TERMINAL_INJECTION.map(|request| {
        SeccompRule::new(vec![SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            request,
        )?])
    });
    rules.insert(
        interface.ioctl,
        injection.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn missing(interface: &Interface) -> Rules {
    Ok(BTreeMap::from([(interface.clone3, Vec::new())]))
}

/// x86-64 has a third set of numbers for the same calls (x32), which the rules above don't know. Elsewhere there are none so large.
fn other_numbers() -> BpfProgram {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const FIRST_X32: u32 = 0x4000_0000;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_AT_LEAST, 0, 1, FIRST_X32),
        instruction(
            RETURN,
            0,
            0,
            SeccompAction::Errno(libc::ENOSYS.cast_unsigned()).into(),
        ),
        instruction(RETURN, 0, 0, SeccompAction::Allow.into()),
    ]
}

fn program(interface: &Interface, rules: Rules, errno: i32) -> io::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(
        rules.map_err(io::Error::other)?,
        SeccompAction::Allow,
        answer,
        architecture,
    )
    .map_err(io::Error::other)?;
    let mut program: BpfProgram = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| io::Error::other(error))?;
    // The library's first three instructions: load the interface, skip one if it is the wanted one, kill.
    let kill = u32::from(SeccompAction::KillProcess);
    let [_, wanted, killing, ..] = program.as_mut_slice() else {
        return Err(io::Error::other("a filter without a beginning"));
    };
    if (wanted.jt, wanted.jf, killing.k) != (1, 0, kill) {
        return Err(io::Error::other("a filter with another beginning"));
    }
    if let Some(audit) = interface.audit {
        wanted.k = audit;
    }
    if INTERFACES.len() > 1 {
        killing.k = SeccompAction::Allow.into();
    }
    Ok(program)
}
