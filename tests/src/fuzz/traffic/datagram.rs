//! Datagrams in fragments: in order, in disorder, with gaps, overlaps and repeats; and what follows and answers them.

use super::super::step::{Edit, Origin, Step};
use super::Traffic;
use crate::dice::Dice;
use crate::packet::build::Packet;

/// Bytes of a fragment, whole units of eight.
const SIZES: [usize; 6] = [8, 16, 24, 24, 32, 48];
/// Identifications: few, so that datagrams meet.
const IDS: usize = 6;
/// Ticks after which the rest of a datagram comes too late, and after which it does not.
const PAUSES: [u32; 3] = [17, 53, 199];

impl Traffic {
    /// A flow's packet in fragments.
    pub(in crate::fuzz) fn datagram(&mut self, dice: &mut Dice) -> Vec<Step> {
        let (place, packet) = self.opener(dice);
        let size = *dice.pick(&SIZES);
        let id = u32::try_from(1 + dice.below(IDS)).unwrap_or(1);
        let packet = packet.data(&vec![0x5a; size + dice.below(4 * size)]).id(id);
        let mut parts = packet.fragments(size);
        spoil(dice, &packet, size, &mut parts);
        let (goes_on, answered) = (dice.chance(60), dice.chance(60));
        let pause = dice.chance(10).then(|| dice.below(parts.len()));
        let mut steps = Vec::new();
        let mut last = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            if pause == Some(n) {
                steps.push(Step::Age(*dice.pick(&PAUSES)));
            }
            if dice.chance(2) {
                steps.push(Step::Epoch(*dice.pick(&self.cast.pods)));
            }
            last.push(self.next);
            steps.push(self.step(Origin::Frame(place, part.bytes()), Vec::new()));
            if goes_on {
                let id = self.next - 1;
                last.push(self.next);
                steps.push(self.step(Origin::Onward(id), Vec::new()));
            }
        }
        if answered {
            for id in last {
                steps.push(self.step(Origin::AnswerTo(id), Vec::<Edit>::new()));
            }
        }
        steps
    }
}

/// Does to the fragments of a datagram what a network or an attacker does.
fn spoil(dice: &mut Dice, packet: &Packet, size: usize, parts: &mut Vec<Packet>) {
    let place = dice.below(parts.len());
    let offset = u16::try_from(place * size / 8).unwrap_or(0);
    match dice.below(14) {
        0 => parts.reverse(),
        1 if parts.len() > 1 => _ = parts.remove(place),
        2 if parts.len() > 1 => _ = parts.remove(0),
        3 => parts.push(parts[place].clone()),
        4 => parts.insert(place, parts[place].clone()),
        // It begins where it should not, or ends so.
        5 => {
            parts[place] = parts[place]
                .clone()
                .fragment(offset.wrapping_sub(1) & 0x1fff, true)
        }
        6 => parts[place] = parts[place].clone().data(&[0x5b; 13]),
        7 => parts[place] = parts[place].clone().fragment(8_190, false),
        8 => parts[place] = parts[place].clone().id(9),
        // All of it behind a fragment header.
        9 => *parts = vec![packet.clone().fragment(0, false)],
        _ => {}
    }
}
