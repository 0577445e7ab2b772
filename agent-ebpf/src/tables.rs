//! The maps as [`Tables`], for the look-up rules of `agent_common::lookup`.

use agent_common::{
    Address, AddressEntry, Backend, Head, LinkEntry, Pod, Prefix, PrefixEntry, RuleKey,
    ServiceEntry, ServiceKey, SetWord, Verdict, feature, lookup::Tables,
};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::maps::{
    ADDRESSES, BACKENDS, CONFIG, GROUPS, HEADS, LINKS, PODS, PREFIXES, RULES, SERVICES, SHARES,
    SLOTS,
};

/// The kernel's maps.
pub struct Maps;

/// Reads a value of one aligned word at once, so that it cannot be torn by a writer.
#[inline(always)]
fn raw<T>(pointer: *const T) -> u64 {
    const { assert!(size_of::<T>() == 8 && align_of::<T>() == 8) };
    // SAFETY: the pointer is a map value of eight aligned bytes, checked above.
    unsafe { core::ptr::read_volatile(pointer.cast::<u64>()) }
}

/// [`raw`], as what it is.
#[inline(always)]
fn word<T: Copy>(pointer: *const T) -> T {
    let raw = raw(pointer);
    // SAFETY: eight bytes, as `raw` has checked; every type read so is made of integers.
    unsafe { core::mem::transmute_copy(&raw) }
}

/// What stands for no entry; no entry looks like this. It is kept in one opaque word until the end: the compiler leaves the registers of
/// an absent option unset and yet copies them, which the verifier does not let it.
const NOTHING: u64 = u64::MAX;

/// What `addresses` says of an address, as a word that [`address_at`] makes an entry of: to be kept, and chosen among.
#[inline(always)]
pub fn address_word(address: &Address) -> u64 {
    let check = address.check();
    let mut found = NOTHING;
    if let Some(pointer) = ADDRESSES.get_ptr(address) {
        found = raw(pointer);
        if AddressEntry::from_raw(found).check != check {
            // Given to another address while it was read: look again, once.
            found = NOTHING;
            if let Some(pointer) = ADDRESSES.get_ptr(address) {
                found = raw(pointer);
                if AddressEntry::from_raw(found).check != check {
                    found = NOTHING;
                }
            }
        }
    }
    core::hint::black_box(found)
}

/// The entry in what [`address_word`] has read.
#[inline(always)]
pub fn address_at(word: u64) -> Option<AddressEntry> {
    if word == NOTHING {
        return None;
    }
    Some(AddressEntry::from_raw(word))
}

impl Tables for Maps {
    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        address_at(address_word(address))
    }

    #[inline(always)]
    fn prefix(&self, address: &Address) -> Option<PrefixEntry> {
        let key = Key::new(
            128,
            Prefix {
                bytes: address.bytes,
            },
        );
        PREFIXES
            .get(&key)
            .map(|entry| word(core::ptr::from_ref(entry)))
    }

    #[inline(always)]
    fn group(&self, identity: u32) -> u32 {
        match GROUPS.get_ptr(identity) {
            // SAFETY: a map value; the group is read once.
            Some(entry) => unsafe { core::ptr::read_volatile(&raw const (*entry).group) },
            None => agent_common::GROUP_ANY,
        }
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<Verdict> {
        let key = Key::new(agent_common::rule_bits::PORT, *key);
        RULES
            .get(&key)
            .map(|verdict| word(core::ptr::from_ref(verdict)))
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        let check = key.check();
        let mut found = NOTHING;
        if let Some(pointer) = SERVICES.get_ptr(key) {
            found = raw(pointer);
            if ServiceEntry::from_raw(found).check != check {
                found = NOTHING;
                if let Some(pointer) = SERVICES.get_ptr(key) {
                    found = raw(pointer);
                    if ServiceEntry::from_raw(found).check != check {
                        found = NOTHING;
                    }
                }
            }
        }
        let found = core::hint::black_box(found);
        if found == NOTHING {
            return None;
        }
        Some(ServiceEntry::from_raw(found))
    }

    #[inline(always)]
    fn head(&self, pool: u32) -> Option<Head> {
        HEADS.get_ptr(pool).map(word)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        let slot = SLOTS.get_ptr(index)?;
        // SAFETY: a map value; the number is read once.
        Some(unsafe { core::ptr::read_volatile(&raw const (*slot).backend) })
    }

    #[inline(always)]
    fn backend(&self, backend: u32) -> Option<Backend> {
        let pointer = BACKENDS.get_ptr(backend)?;
        // SAFETY: a map value. The address does not change while anything points to the backend.
        let (address, state) = unsafe { ((*pointer).address, word(&raw const (*pointer).word)) };
        Some(Backend {
            address,
            word: state,
        })
    }

    #[inline(always)]
    fn literal(&self) -> bool {
        features() & feature::LITERAL != 0
    }
}

/// [`agent_common::feature`] bits in force.
#[inline(always)]
pub fn features() -> u64 {
    match CONFIG.get_ptr(0) {
        // SAFETY: a map value, read once.
        Some(config) => unsafe { core::ptr::read_volatile(&raw const (*config).features) },
        None => 0,
    }
}

/// The slot of an interface.
#[inline(always)]
pub fn link(ifindex: u32) -> Option<u32> {
    LINKS
        .get_ptr(ifindex)
        .map(|entry| word::<LinkEntry>(entry).slot)
}

/// A pod's slot.
#[inline(always)]
pub fn pod(slot: u32) -> Option<&'static Pod> {
    // SAFETY: an element of an array map lives as long as the program; the agent stores words of it atomically,
    // and the readers of those go through the functions below.
    PODS.get_ptr(slot).map(|pod| unsafe { &*pod })
}

/// A pod's epoch, read once.
#[inline(always)]
pub fn epoch(pod: &Pod) -> u32 {
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(&raw const pod.epoch) }
}

/// A pod's set for what it sends, read once.
#[inline(always)]
pub fn egress_set(pod: &Pod) -> SetWord {
    word(&raw const pod.egress)
}

/// A pod's set for what reaches it, read once.
#[inline(always)]
pub fn ingress_set(pod: &Pod) -> SetWord {
    word(&raw const pod.ingress)
}

/// Whether the pod of a slot may take one flow more of `conntrack`. Without a slot there is no bound.
#[inline(always)]
pub fn has_room(slot: u32) -> bool {
    if crate::mutant::removed!("no-share") {
        return true;
    }
    match SHARES.get_ptr(slot) {
        // SAFETY: a map value; each field is read once.
        Some(share) => unsafe { core::ptr::read_volatile(share) }.has_room(),
        None => true,
    }
}

/// Notes that the pod of a slot has taken one flow more.
#[inline(always)]
pub fn take_share(slot: u32) {
    if let Some(share) = SHARES.get_ptr_mut(slot) {
        // SAFETY: a map value. Two CPUs may count one flow only at one instant; the agent counts again.
        unsafe {
            let made = &raw mut (*share).made;
            core::ptr::write_volatile(made, core::ptr::read_volatile(made).wrapping_add(1));
        }
    }
}
