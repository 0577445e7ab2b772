//! Layout 3: entries as in layout 2, but the programs' working memory is another (fragments, SCTP), and `port_delta` of an SCTP flow is its
//! verification tag.

use super::{Layout, v2};

pub(super) const LAYOUT: Layout = Layout {
    number: 3,
    maps: v2::LAYOUT.maps,
};
