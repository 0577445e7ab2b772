//! Layout 2, as it was: the first behind the gate. (Layout 1 had its links among its maps, and nothing can take over from it.)
//!
//! Never changed once a release has had it: a later layout gets a file of its own.

use super::{Field, Layout, MapLayout, Record, covered};

/// Fields one behind the other, from their names and sizes.
const fn placed<const N: usize>(list: [(&'static str, usize); N]) -> [Field; N] {
    const NONE: Field = Field {
        name: "",
        offset: 0,
        size: 0,
    };
    let mut fields = [NONE; N];
    let (mut at, mut offset) = (0, 0);
    while at < N {
        let (name, size) = list[at];
        fields[at] = Field { name, offset, size };
        offset += size;
        at += 1;
    }
    fields
}

/// A record by its fields in order, each with its bytes. Nothing lies between them: all padding is a field.
macro_rules! packed {
    ($($name:ident $size:literal),* $(,)?) => {{
        const FIELDS: &[Field] = &placed([$((stringify!($name), $size)),*]);
        Record { size: covered(FIELDS), fields: FIELDS }
    }};
}

const TUPLE: Record = packed!(
    source 16, destination 16, source_port_be 2, destination_port_be 2, protocol 1, _zero 3,
);

const FLOW: Record = packed!(
    new_source 16, new_destination 16, new_source_port_be 2, new_destination_port_be 2,
    address_delta 4, flags 4, ifindex 4, port_delta 4, deliver 4, opener 4, responder 4, egress 8,
    ingress 8, backend 4, backend_generation 4, service 4, last_seen 4, created 4, path 1, fin 1,
    partner_fin 1, closing 1,
);

const NUMBER: Record = packed!(number 4);

const SOCKET_KEY: Record = packed!(cookie 8, address 16, port_be 2, protocol 1, _zero 5);

const SOCKET: Record = packed!(
    address 16, port_be 2, _zero 2, backend 4, backend_generation 4, service 4,
);

const POD: Record = packed!(
    egress 8, ingress 8, epoch 4, ifindex 4, flags 4, mac 6, host_mac 6, namespace 4, _zero 4,
);

const LINK: Record = packed!(slot 4, _zero 4);

const BYTES: Record = packed!(bytes 16);

const ADDRESS: Record = packed!(identity 4, slot 2, kind 1, check 1);

const PREFIX: Record = packed!(identity 4, _zero 4);

const GROUP: Record = packed!(group 4, _zero 4);

const RULE: Record = packed!(set 4, group 4, protocol 1, _zero 1, port_be 2, _rest 4);

const VERDICT: Record = packed!(rule 4, priority 2, tier 1, action 1);

const SERVICE_KEY: Record = packed!(address 16, port_be 2, protocol 1, _zero 5);

const SERVICE: Record = packed!(pool 4, flags 2, check 2);

const HEAD: Record = packed!(first 4, count 4);

const SLOT: Record = packed!(backend 4);

const BACKEND: Record = packed!(address 16, word 8);

const fn map(name: &'static str, key: Record, value: Record) -> MapLayout {
    MapLayout { name, key, value }
}

pub(super) const LAYOUT: Layout = Layout {
    number: 2,
    maps: &[
        map("conntrack", TUPLE, FLOW),
        map("unreplied", TUPLE, FLOW),
        map("sock_reverse", SOCKET_KEY, SOCKET),
        map("pods", NUMBER, POD),
        map("links", NUMBER, LINK),
        map("addresses", BYTES, ADDRESS),
        map("prefixes", BYTES, PREFIX),
        map("groups", NUMBER, GROUP),
        map("rules", RULE, VERDICT),
        map("services", SERVICE_KEY, SERVICE),
        map("heads", NUMBER, HEAD),
        map("slots", NUMBER, SLOT),
        map("backends", NUMBER, BACKEND),
    ],
};
