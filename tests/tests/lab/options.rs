//! Sockets whose packets bear options of IP reach services and are refused as any others, although what stands between the headers must go before a
//! segment can become its own reset, and the kernel cuts nothing off that a checksum is still to be made of.

use agent_common::Reason;
use anyhow::{Context, Result, ensure};
use tests::lab::patience;
use tests::lab::traffic::Outcome;
use tests::lab::traffic::optioned::{Options, connect_here};

use crate::scene::{DEADLINE, SERVICE, at, service, vip};
use crate::services::{AT_ONCE, EMPTY, WEB, web};

#[test]
fn a_connection_with_options_of_ip_is_refused_at_once() -> Result<()> {
    let scene = web(&[])?;
    let [empty, ..] = service("empty", EMPTY, &[]);
    scene.apply([&empty])?;
    let client = scene.netns("client")?;
    let pinned = scene.pinned();
    let refused = pinned.drops(Reason::NoEndpoint)?;
    let mut asked = 0;
    for (empty, web) in at(vip(EMPTY), SERVICE)
        .into_iter()
        .zip(at(vip(WEB), SERVICE))
    {
        for options in Options::of(&web) {
            let with = |to, deadline| {
                client
                    .run(|| connect_here(to, *options, deadline))?
                    .with_context(|| format!("{to} with {options}"))
            };
            let stands = with(web, DEADLINE)?;
            ensure!(
                stands.is_none(),
                "{web} with {options}: {stands:?}; drops: {:?}",
                pinned.all_drops()?
            );
            let outcome = with(empty, AT_ONCE * patience())?;
            ensure!(
                outcome == Some(Outcome::Refused),
                "{empty} with {options}: {outcome:?}, but it should be refused at once; drops: {:?}",
                pinned.all_drops()?
            );
            asked += 1;
        }
    }
    let counted = pinned.drops(Reason::NoEndpoint)? - refused;
    ensure!(counted == asked, "{asked} refusals, {counted} counted");
    let failed = pinned.drops(Reason::RewriteFailed)?;
    ensure!(failed == 0, "{failed} packets could not be rewritten");
    tests::say(format_args!(
        "{asked} connections with options of IP refused at once"
    ));
    Ok(())
}
