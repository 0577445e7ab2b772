//! Every map. Keys, values and capacities: `agent_common`.

use agent_common::{
    Address, AddressEntry, Backend, BackendWord, Budget, COUNTERS, Config, Counter, Flow, Fragment,
    FragmentKey, GroupEntry, Head, LinkEntry, Pod, Prefix, PrefixEntry, RuleKey, ServiceEntry,
    ServiceKey, SetWord, Share, Slot, SocketReverse, SocketReverseKey, Tuple, Verdict, budget,
    gate, limits,
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};

use crate::{gate::SocketGate, work::Work};

/// Arrays that the agent stores single words of, through a mapping.
const MAPPED: usize = BPF_F_MMAPABLE as usize;
/// Hashes that take memory for what is in them, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "conntrack")]
pub static CONNTRACK: LruHashMap<Tuple, Flow, { limits::CONNTRACK as usize }> = LruHashMap::new();
#[btf_map(name = "unreplied")]
pub static UNREPLIED: LruHashMap<Tuple, Flow, { limits::UNREPLIED as usize }> = LruHashMap::new();
#[btf_map(name = "shares")]
pub static SHARES: Array<Share, { limits::PODS as usize }, MAPPED> = Array::new();
#[btf_map(name = "pods")]
pub static PODS: Array<Pod, { limits::PODS as usize }, MAPPED> = Array::new();
#[btf_map(name = "links")]
pub static LINKS: HashMap<u32, LinkEntry, { limits::LINKS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map(name = "addresses")]
pub static ADDRESSES: HashMap<Address, AddressEntry, { limits::ADDRESSES as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "prefixes")]
pub static PREFIXES: LpmTrie<Prefix, PrefixEntry, { limits::PREFIXES as usize }> = LpmTrie::new();
#[btf_map(name = "groups")]
pub static GROUPS: Array<GroupEntry, { limits::IDENTITIES as usize }, MAPPED> = Array::new();
#[btf_map(name = "rules")]
pub static RULES: LpmTrie<RuleKey, Verdict, { limits::RULES as usize }> = LpmTrie::new();
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, ServiceEntry, { limits::SERVICES as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map(name = "heads")]
pub static HEADS: Array<Head, { limits::HEADS as usize }, MAPPED> = Array::new();
#[btf_map(name = "slots")]
pub static SLOTS: Array<Slot, { limits::SLOTS as usize }, MAPPED> = Array::new();
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { limits::BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "sock_reverse")]
pub static SOCK_REVERSE: LruHashMap<
    SocketReverseKey,
    SocketReverse,
    { limits::SOCKET_REVERSE as usize },
> = LruHashMap::new();
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map(name = "config")]
pub static CONFIG: Array<Config, 1, MAPPED> = Array::new();
#[btf_map(name = "counters")]
pub static COUNTERS_MAP: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();
#[btf_map(name = "budget")]
pub static BUDGET: PerCpuArray<Budget, { budget::BUDGETS as usize }> = PerCpuArray::new();
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<(), { limits::EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "programs")]
pub static PROGRAMS: ProgramArray<{ limits::PROGRAMS as usize }> = ProgramArray::new();
/// See [`agent_common::gate`]: shared by agents of all layouts.
#[btf_map(name = "gate")]
pub static GATE: ProgramArray<{ gate::SLOTS as usize }> = ProgramArray::new();
#[btf_map(name = "gate_word")]
pub static GATE_WORD: Array<u64, 1, MAPPED> = Array::new();
#[btf_map(name = "gate_connect4")]
pub static GATE_CONNECT4: SocketGate = SocketGate::new();
#[btf_map(name = "gate_connect6")]
pub static GATE_CONNECT6: SocketGate = SocketGate::new();
#[btf_map(name = "gate_sendmsg4")]
pub static GATE_SENDMSG4: SocketGate = SocketGate::new();
#[btf_map(name = "gate_sendmsg6")]
pub static GATE_SENDMSG6: SocketGate = SocketGate::new();
#[btf_map(name = "gate_recvmsg4")]
pub static GATE_RECVMSG4: SocketGate = SocketGate::new();
#[btf_map(name = "gate_recvmsg6")]
pub static GATE_RECVMSG6: SocketGate = SocketGate::new();
#[btf_map(name = "gate_peername4")]
pub static GATE_PEERNAME4: SocketGate = SocketGate::new();
#[btf_map(name = "gate_peername6")]
pub static GATE_PEERNAME6: SocketGate = SocketGate::new();
/// Working memory of the TC programs, which never interrupt each other on one CPU (bottom halves are off). Socket programs
/// may be interrupted by them, and have none of it.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Work, 1> = PerCpuArray::new();

const _: () = {
    // One aligned word each, that the programs read at once.
    assert!(size_of::<AddressEntry>() == 8 && align_of::<AddressEntry>() == 8);
    assert!(size_of::<ServiceEntry>() == 8 && align_of::<ServiceEntry>() == 8);
    assert!(size_of::<Head>() == 8 && align_of::<Head>() == 8);
    assert!(size_of::<SetWord>() == 8 && align_of::<SetWord>() == 8);
    assert!(size_of::<BackendWord>() == 8 && align_of::<BackendWord>() == 8);
};
