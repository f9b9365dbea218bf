//! Which system calls are refused to a step? Those that container runtimes refuse by default and that capabilities don't cover already.
//!
//! `clone3` answers "not implemented", since its flags can't be looked at; libraries then use `clone`. The others answer "not permitted".

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

/// TIOCSTI and TIOCLINUX put characters into a terminal's input (the C libraries disagree about the constants' type).
const TERMINAL_INJECTION: [u64; 2] = [0x5412, 0x541c];

/// Installs the filters for this process and all it will become. Needs CAP_SYS_ADMIN in the user namespace, and so leaves `no_new_privs` off.
pub(super) fn install() -> io::Result<()> {
    for program in [
        program(refused(), libc::EPERM)?,
        program(missing(), libc::ENOSYS)?,
        other_numbers(),
    ] {
        kernel::set_filter(&program)?;
    }
    Ok(())
}

type Rules = Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError>;

fn refused() -> Rules {
    let new_user_namespace = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let has_new_user = |argument| {
        let operator = SeccompCmpOp::MaskedEq(new_user_namespace);
        SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Qword,
            operator,
            new_user_namespace,
        )?])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_unshare, vec![has_new_user(0)?]);
    rules.insert(libc::SYS_clone, vec![has_new_user(0)?]);
    let injection = TERMINAL_INJECTION.map(|request| {
        SeccompRule::new(vec![SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            request,
        )?])
    });
    rules.insert(
        libc::SYS_ioctl,
        injection.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn missing() -> Rules {
    Ok(BTreeMap::from([(libc::SYS_clone3, Vec::new())]))
}

/// x86-64 has a second set of numbers for the same calls (x32), which the rules above don't know. On other machines there are none so large.
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

fn program(rules: Rules, errno: i32) -> io::Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(
        rules.map_err(io::Error::other)?,
        SeccompAction::Allow,
        answer,
        architecture,
    )
    .map_err(io::Error::other)?;
    filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| io::Error::other(error))
}
