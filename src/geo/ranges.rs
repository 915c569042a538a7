//! An address space cut into ranges, each with a place: what the atlas is built in, range by range, in order.
//!
//! Twelve bytes a range: the upper 64 bits of where it starts and its place. IPv4 addresses are taken as the upper 32
//! of those bits. The few IPv6 /64s that are divided further stand for themselves in a second list; 64-bit keys alone
//! would lose them, 128-bit keys would double the whole for one network in a hundred.
//!
//! Must not know where ranges come from.

use std::iter::Peekable;

use crate::geo::PlaceId;

/// What a range holds: a place, or the number of a /64 that is divided further. The highest of its 32 bits is 0, free
/// for who stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

impl Slot {
    const DIVIDED: u32 = 1 << 30;

    pub(super) fn from_bits(bits: u32) -> Slot {
        Slot(bits)
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The place, or else the index of the divided /64.
    pub(super) fn get(self) -> Result<PlaceId, usize> {
        if self.0 & Slot::DIVIDED == 0 { Ok(PlaceId(self.0)) } else { Err((self.0 ^ Slot::DIVIDED) as usize) }
    }
}

/// More places than any database has; ids above would run into [`Slot::DIVIDED`].
pub(super) const MAX_PLACES: usize = Slot::DIVIDED as usize;

/// The ranges of one address family, ascending, from the first address on without a gap.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    starts: Vec<u64>,
    slots: Vec<Slot>,
    divided: Divided,
    /// The place of the range that is open at the end.
    last: PlaceId,
    /// The last range is a divided /64 whose end is not marked yet.
    open: bool,
}

impl Ranges {
    /// One range over everything: nothing known.
    pub(super) fn unknown() -> Ranges {
        Ranges {
            starts: vec![0],
            slots: vec![Slot(PlaceId::UNKNOWN.0)],
            divided: Divided::default(),
            last: PlaceId::UNKNOWN,
            open: false,
        }
    }

    /// A range that starts at `start` and ends at the next, in ascending order; of equal starts the last counts.
    fn push(&mut self, start: u128, place: PlaceId) {
        if place == self.last {
            return;
        }
        let (upper, lower) = ((start >> 64) as u64, start as u64);
        if self.starts.last() != Some(&upper) {
            self.close(Some(upper));
        }
        if self.open {
            self.divided.push(lower, place);
        } else if lower == 0 {
            self.set(upper, Slot(place.0));
        } else {
            let index = self.divided.open(self.last);
            self.divided.push(lower, place);
            self.set(upper, Slot(index | Slot::DIVIDED));
            self.open = true;
        }
        self.last = place;
    }

    /// What holds after a divided /64 gets a range of its own, unless one starts there (`next`) anyway.
    fn close(&mut self, next: Option<u64>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let after = self.starts.last().and_then(|start| start.checked_add(1));
        if let Some(after) = after
            && next != Some(after)
        {
            self.set(after, Slot(self.last.0));
        }
    }

    fn set(&mut self, start: u64, slot: Slot) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.slots.pop();
        }
        self.starts.push(start);
        self.slots.push(slot);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len() + self.divided.lowers.len()
    }

    /// The upper 64 bits of every start, ascending; the first is 0.
    pub(super) fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// What holds from each start.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The /64s that hold more than one range.
    pub(super) fn into_divided(self) -> Divided {
        self.divided
    }

    fn iter(&self) -> impl Iterator<Item = (u128, PlaceId)> + '_ {
        self.starts.iter().zip(&self.slots).flat_map(|(start, slot)| {
            let base = u128::from(*start) << 64;
            let (whole, parts) = match slot.get() {
                Ok(place) => (Some((base, place)), None),
                Err(index) => (None, Some(self.divided.parts(index))),
            };
            whole
                .into_iter()
                .chain(parts.into_iter().flatten().map(move |(low, place)| (base | u128::from(low), place)))
        })
    }
}

/// The /64s that hold more than one range.
#[derive(Clone, Debug, Default)]
pub(super) struct Divided {
    /// Where the parts of each begin in the two lists below.
    firsts: Vec<u32>,
    lowers: Vec<u64>,
    places: Vec<PlaceId>,
}

impl Divided {
    fn open(&mut self, first: PlaceId) -> u32 {
        let index = self.firsts.len() as u32;
        self.firsts.push(self.lowers.len() as u32);
        self.push(0, first);
        index
    }

    fn push(&mut self, lower: u64, place: PlaceId) {
        // Parts of one /64 ascend and begin with 0, so equal neighbours are of the same.
        if lower != 0 && self.lowers.last() == Some(&lower) {
            self.lowers.pop();
            self.places.pop();
        }
        self.lowers.push(lower);
        self.places.push(place);
    }

    fn span(&self, index: usize) -> std::ops::Range<usize> {
        let end = self.firsts.get(index + 1).map_or(self.lowers.len(), |end| *end as usize);
        self.firsts[index] as usize..end
    }

    fn parts(&self, index: usize) -> impl Iterator<Item = (u64, PlaceId)> + '_ {
        let span = self.span(index);
        self.lowers[span.clone()].iter().copied().zip(self.places[span].iter().copied())
    }

    /// Bytes they occupy.
    pub(super) fn memory_bytes(&self) -> usize {
        4 * self.firsts.len() + (8 + 4) * self.lowers.len()
    }

    /// The place of the address with these lower 64 bits in the /64 of that index.
    pub(super) fn find(&self, index: usize, lower: u64) -> PlaceId {
        let span = self.span(index);
        let first = span.start;
        let after = self.lowers[span].partition_point(|start| *start <= lower);
        // Every divided /64 has a part that starts at 0, so `after` is at least 1.
        self.places[first + after - 1]
    }
}

/// Lays a new source under what is already known, in one pass over both.
pub(super) struct Underlay<I: Iterator<Item = (u128, PlaceId)>> {
    known: Peekable<I>,
    known_place: PlaceId,
    new_place: PlaceId,
    out: Ranges,
}

/// An [`Underlay`] with nothing under it yet.
pub(super) fn under(known: &Ranges) -> Underlay<impl Iterator<Item = (u128, PlaceId)>> {
    Underlay {
        known: known.iter().peekable(),
        known_place: PlaceId::UNKNOWN,
        new_place: PlaceId::UNKNOWN,
        out: Ranges::unknown(),
    }
}

impl<I: Iterator<Item = (u128, PlaceId)>> Underlay<I> {
    /// From `start` on the new source says `place`. Starts ascend; of equal ones the last counts.
    pub(super) fn push(&mut self, start: u128, place: PlaceId) {
        if place == self.new_place {
            return;
        }
        while let Some((at, known)) = self.known.next_if(|(at, _)| *at <= start) {
            self.known_place = known;
            if at < start {
                self.out.push(at, self.answer());
            }
        }
        self.new_place = place;
        self.out.push(start, self.answer());
    }

    /// What was known, and where nothing was, what the new source said.
    pub(super) fn finish(mut self) -> Ranges {
        while let Some((at, known)) = self.known.next() {
            self.known_place = known;
            self.out.push(at, self.answer());
        }
        self.out.close(None);
        self.out
    }

    fn answer(&self) -> PlaceId {
        if self.known_place == PlaceId::UNKNOWN { self.new_place } else { self.known_place }
    }
}
