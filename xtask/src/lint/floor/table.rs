//! What of the kernel Sluice uses, each with the first kernel that has it.
//!
//! First kernels are those of the mainline commit that brought the thing for the way it is used here (a helper may be older than
//! its use in this kind of program), checked against the kernel's history and the BPF documentation's tables of versions.

use aya_obj::generated::{bpf_func_id as Func, bpf_map_type as Map};

/// Major and minor of a mainline kernel.
pub(super) type Version = (u32, u32);

/// The oldest kernel that Sluice is for.
pub(super) const FLOOR: Version = (5, 15);

/// A thing of the kernel's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Thing {
    /// A helper that a program calls, by its number.
    Helper(u32),
    /// A kind of map in the object, by its number.
    Map(u32),
    /// One flag of a map in the object.
    MapFlag(u32),
    /// A program's kind and the hook it is attached to, as aya calls them.
    Program(String),
    /// Something about the programs' instructions.
    Instruction(&'static str),
    /// A name in the source of `agent/src/datapath`: a command of bpf(2), an attach type, an option of a socket.
    Name(String),
}

/// A row.
pub(super) struct Row {
    pub(super) thing: Thing,
    /// As the kernel calls it.
    pub(super) name: &'static str,
    pub(super) first: Version,
    /// What happens instead on a kernel without it: needed where that may be a kernel that Sluice is for.
    pub(super) instead: Option<&'static str>,
}

const fn row(thing: Thing, name: &'static str, first: Version) -> Row {
    Row {
        thing,
        name,
        first,
        instead: None,
    }
}

fn helper(id: Func, name: &'static str, first: Version) -> Row {
    row(Thing::Helper(id as u32), name, first)
}

fn map(kind: Map, name: &'static str, first: Version) -> Row {
    row(Thing::Map(kind as u32), name, first)
}

fn program(kind: &str, first: Version) -> Row {
    row(
        Thing::Program(kind.to_owned()),
        "program of this kind",
        first,
    )
}

fn word(name: &'static str, first: Version) -> Row {
    row(Thing::Name(name.to_owned()), name, first)
}

fn or(row: Row, instead: &'static str) -> Row {
    Row {
        instead: Some(instead),
        ..row
    }
}

const BY_CLSACT: &str =
    "agent/src/datapath/attach.rs asks the kernel, and attaches filters of clsact";

/// Conditional jumps of 32 bits.
pub(super) const JUMPS_32: &str = "conditional jumps on 32 bits";
/// A jump backwards.
pub(super) const LOOPS: &str = "bounded loops";
/// A program with subprograms that tail-calls.
pub(super) const TAIL_CALLS_AND_SUBPROGRAMS: &str = "tail calls beside subprograms";
/// Read-modify-write that answers the old value, and compare-and-exchange.
pub(super) const FETCHING_ATOMICS: &str = "atomic operations that fetch";
/// A function that the verifier walks by itself, with a pointer to memory as its argument.
pub(super) const GLOBAL_FUNCTIONS: &str = "global functions with pointers to memory";
/// Read-only data of the object.
pub(super) const DATA: &str = "global data";

/// Every row.
pub(super) fn rows() -> Vec<Row> {
    vec![
        helper(Func::BPF_FUNC_map_lookup_elem, "map_lookup_elem", (3, 19)),
        helper(Func::BPF_FUNC_map_update_elem, "map_update_elem", (3, 19)),
        helper(Func::BPF_FUNC_map_delete_elem, "map_delete_elem", (3, 19)),
        helper(Func::BPF_FUNC_get_prandom_u32, "get_prandom_u32", (4, 1)),
        helper(Func::BPF_FUNC_l4_csum_replace, "l4_csum_replace", (4, 1)),
        helper(Func::BPF_FUNC_redirect, "redirect", (4, 2)),
        // Of what stands in the packet; of other memory since 4.6.
        helper(Func::BPF_FUNC_csum_diff, "csum_diff", (4, 9)),
        helper(Func::BPF_FUNC_tail_call, "tail_call", (4, 2)),
        helper(Func::BPF_FUNC_skb_load_bytes, "skb_load_bytes", (4, 5)),
        helper(Func::BPF_FUNC_skb_change_tail, "skb_change_tail", (4, 9)),
        helper(Func::BPF_FUNC_skb_pull_data, "skb_pull_data", (4, 9)),
        // At the link's header (BPF_ADJ_ROOM_MAC); behind it since 4.13.
        helper(Func::BPF_FUNC_skb_adjust_room, "skb_adjust_room", (5, 2)),
        helper(Func::BPF_FUNC_sk_release, "sk_release", (4, 20)),
        helper(Func::BPF_FUNC_skc_lookup_tcp, "skc_lookup_tcp", (5, 2)),
        // In programs of socket addresses; elsewhere since 4.12.
        helper(
            Func::BPF_FUNC_get_socket_cookie,
            "get_socket_cookie",
            (4, 19),
        ),
        helper(Func::BPF_FUNC_jiffies64, "jiffies64", (5, 6)),
        helper(Func::BPF_FUNC_get_netns_cookie, "get_netns_cookie", (5, 7)),
        helper(Func::BPF_FUNC_ringbuf_reserve, "ringbuf_reserve", (5, 8)),
        helper(Func::BPF_FUNC_ringbuf_submit, "ringbuf_submit", (5, 8)),
        helper(Func::BPF_FUNC_redirect_peer, "redirect_peer", (5, 10)),
        helper(
            Func::BPF_FUNC_ktime_get_coarse_ns,
            "ktime_get_coarse_ns",
            (5, 11),
        ),
        // In programs of socket addresses; in other programs of cgroups since 5.18.
        or(
            helper(Func::BPF_FUNC_set_retval, "set_retval", (6, 1)),
            "agent/src/datapath/load.rs asks the kernel; without it a refused call of a host's process fails with EPERM",
        ),
        map(Map::BPF_MAP_TYPE_HASH, "hash", (3, 19)),
        map(Map::BPF_MAP_TYPE_ARRAY, "array", (3, 19)),
        map(Map::BPF_MAP_TYPE_PROG_ARRAY, "prog_array", (4, 2)),
        map(Map::BPF_MAP_TYPE_PERCPU_ARRAY, "percpu_array", (4, 6)),
        map(Map::BPF_MAP_TYPE_LRU_HASH, "lru_hash", (4, 10)),
        map(Map::BPF_MAP_TYPE_LPM_TRIE, "lpm_trie", (4, 11)),
        map(Map::BPF_MAP_TYPE_RINGBUF, "ringbuf", (5, 8)),
        row(Thing::MapFlag(1), "BPF_F_NO_PREALLOC", (4, 6)),
        row(Thing::MapFlag(1 << 7), "BPF_F_RDONLY_PROG", (5, 2)),
        row(Thing::MapFlag(1 << 10), "BPF_F_MMAPABLE", (5, 5)),
        program("SchedClassifier", (4, 1)),
        program("CgroupSockAddr Connect4", (4, 17)),
        program("CgroupSockAddr Connect6", (4, 17)),
        program("CgroupSockAddr UDPSendMsg4", (4, 18)),
        program("CgroupSockAddr UDPSendMsg6", (4, 18)),
        program("CgroupSockAddr UDPRecvMsg4", (5, 2)),
        program("CgroupSockAddr UDPRecvMsg6", (5, 2)),
        program("CgroupSockAddr GetPeerName4", (5, 8)),
        program("CgroupSockAddr GetPeerName6", (5, 8)),
        row(Thing::Instruction(JUMPS_32), JUMPS_32, (5, 1)),
        row(Thing::Instruction(LOOPS), LOOPS, (5, 3)),
        row(Thing::Instruction(DATA), DATA, (5, 2)),
        row(
            Thing::Instruction(GLOBAL_FUNCTIONS),
            GLOBAL_FUNCTIONS,
            (5, 13),
        ),
        // On x86-64. On arm64 since 6.0: there the floor is not 5.15.
        row(
            Thing::Instruction(TAIL_CALLS_AND_SUBPROGRAMS),
            TAIL_CALLS_AND_SUBPROGRAMS,
            (5, 10),
        ),
        word("SYS_bpf", (3, 18)),
        word("BPF_MAP_CREATE", (3, 18)),
        word("BPF_MAP_LOOKUP_ELEM", (3, 18)),
        word("BPF_MAP_UPDATE_ELEM", (3, 18)),
        word("BPF_MAP_TYPE_ARRAY", (3, 19)),
        word("BPF_MAP_TYPE_LPM_TRIE", (4, 11)),
        word("BPF_MAP_TYPE_ARRAY_OF_MAPS", (4, 12)),
        // Older; but of an LPM trie since then.
        word("BPF_MAP_GET_NEXT_KEY", (4, 16)),
        word("BPF_OBJ_PIN", (4, 4)),
        word("BPF_OBJ_GET", (4, 4)),
        word("BPF_FS_MAGIC", (4, 4)),
        word("BPF_OBJ_GET_INFO_BY_FD", (4, 13)),
        word("BPF_CGROUP_INET4_CONNECT", (4, 17)),
        word("BPF_CGROUP_INET6_CONNECT", (4, 17)),
        word("BPF_CGROUP_UDP4_SENDMSG", (4, 18)),
        word("BPF_CGROUP_UDP6_SENDMSG", (4, 18)),
        word("BPF_CGROUP_UDP4_RECVMSG", (5, 2)),
        word("BPF_CGROUP_UDP6_RECVMSG", (5, 2)),
        word("BPF_MAP_LOOKUP_BATCH", (5, 6)),
        word("BPF_LINK_CREATE", (5, 7)),
        word("BPF_LINK_UPDATE", (5, 7)),
        word("BPF_LINK_DETACH", (5, 9)),
        word("BPF_LINK_TYPE_CGROUP", (5, 7)),
        word("BPF_CGROUP_INET4_GETPEERNAME", (5, 8)),
        word("BPF_CGROUP_INET6_GETPEERNAME", (5, 8)),
        // Of hashes and LRU hashes; of queues since 4.20.
        word("BPF_MAP_LOOKUP_AND_DELETE_ELEM", (5, 14)),
        word("SO_NETNS_COOKIE", (5, 14)),
        or(
            word("BPF_FUNC_set_retval", (5, 18)),
            "it is the question whether there is one",
        ),
        or(word("BPF_TCX_INGRESS", (6, 6)), BY_CLSACT),
        or(word("BPF_TCX_EGRESS", (6, 6)), BY_CLSACT),
        or(word("BPF_LINK_TYPE_TCX", (6, 6)), BY_CLSACT),
        // What netlink is asked for.
        word("DirectAction", (4, 4)),
        word("CLSACT", (4, 5)),
        word("ProgId", (4, 13)),
    ]
}
