//! aya's marker for every type that is copied to or from a map.

macro_rules! pod {
    ($($name:ident),* $(,)?) => {
        $(
            // SAFETY: repr(C), made of integers and arrays of integers only, no implicit padding (sizes are
            // asserted beside each type), and every bit pattern is a value.
            unsafe impl aya::Pod for crate::$name {}
        )*
    };
}

pod!(
    Address,
    AddressEntry,
    Affinity,
    AffinityKey,
    Backend,
    BackendWord,
    Budget,
    Config,
    Counter,
    Event,
    Flow,
    Fragment,
    FragmentKey,
    GroupEntry,
    Head,
    Judgement,
    LinkEntry,
    Pod,
    Prefix,
    PrefixEntry,
    RuleKey,
    SeenFlow,
    SeenFlowKey,
    ServiceEntry,
    ServiceKey,
    SetWord,
    Share,
    Slot,
    SocketReverse,
    SocketReverseKey,
    SourcePortKey,
    SourceRangeKey,
    Timeouts,
    Tuple,
    Verdict,
);
