//! Tests of regions: what they refuse, and that concurrent writers are sound.

use super::*;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::thread;

fn memfd(flags: MFdFlags, bytes: i64) -> OwnedFd {
    let file = memfd_create("test", MFdFlags::MFD_CLOEXEC | flags).unwrap();
    ftruncate(&file, bytes).unwrap();
    file
}

#[test]
fn pages_come_back_as_written() {
    let region = Region::create("test", 8 * PAGE_BYTES as u64, HugePages::Never).unwrap();
    assert!(region.writable() && !region.huge());
    assert_eq!(region.page_count(), 8);
    assert!((0..8).all(|page| region.is_zero_page(page)));
    let data: Vec<u8> = (0..2 * PAGE_BYTES).map(|i| (i % 251) as u8).collect();
    region.write_pages(3, &data);
    let mut out = vec![0; 4 * PAGE_BYTES];
    region.read_pages(2, &mut out);
    assert!(out[..PAGE_BYTES].iter().all(|&b| b == 0));
    assert_eq!(out[PAGE_BYTES..3 * PAGE_BYTES], data[..]);
    assert!(!region.is_zero_page(3) && region.is_zero_page(5));
    region.store_u64(5 * 4096 + 4088, u64::MAX);
    assert_eq!(region.load_u64(5 * 4096 + 4088), u64::MAX);
    assert!(!region.is_zero_page(5) && region.is_zero_page(6));
}

#[test]
fn new_pages_come_back_as_written_whichever_way_they_took() {
    let region = Region::create("test", 80 * PAGE_BYTES as u64, HugePages::Never).unwrap();
    assert!(region.by_file);
    region.write_pages(4, &[1; PAGE_BYTES]);
    let data: Vec<u8> = (0..66 * PAGE_BYTES).map(|i| (i % 251) as u8).collect();
    region.write_new_pages(3, &data);
    let mut out = vec![0; data.len()];
    region.read_pages(3, &mut out);
    assert!(out == data, "touched and new pages alike");
    assert!(region.is_zero_page(2) && region.is_zero_page(69));
    // A descriptor that appends: the file refuses, so the mapping takes the pages.
    fcntl(region.fd(), FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
    region.write_new_pages(70, &data[..2 * PAGE_BYTES]);
    region.read_pages(70, &mut out[..2 * PAGE_BYTES]);
    assert!(out[..2 * PAGE_BYTES] == data[..2 * PAGE_BYTES]);
    assert_eq!(fstat(region.fd()).unwrap().st_size, 80 * PAGE_BYTES as i64);
}

#[test]
fn a_file_that_could_grow_is_written_through_the_mapping_alone() {
    let file = memfd(MFdFlags::MFD_ALLOW_SEALING, 4 * PAGE_BYTES as i64);
    let region = Region::from_fd(file).unwrap();
    assert!(!region.by_file);
    region.write_new_pages(1, &[5; 2 * PAGE_BYTES]);
    assert_eq!(region.load_u64(2 * PAGE_BYTES as u64), u64::from_ne_bytes([5; 8]));
}

#[test]
fn another_mapping_of_the_same_file_shares_the_memory() {
    let here = Region::create("test", 1 << 20, HugePages::Never).unwrap();
    let there = Region::from_fd(here.fd().try_clone_to_owned().unwrap()).unwrap();
    here.store_u64(4096, 7);
    assert_eq!(there.load_u64(4096), 7);
    there.write_pages(255, &[9; PAGE_BYTES]);
    assert_eq!(here.load_u64((1 << 20) - 8), u64::from_ne_bytes([9; 8]));
}

#[test]
fn the_owner_cannot_shrink_a_region_under_us() {
    let file = memfd(MFdFlags::MFD_ALLOW_SEALING, 16 * 4096);
    let owner = file.try_clone().unwrap();
    let region = Region::from_fd(file).unwrap();
    assert_eq!(ftruncate(&owner, 4096), Err(Errno::EPERM));
    // The last page is still there: without the seal this load would be a SIGBUS.
    assert_eq!(region.load_u64(15 * 4096), 0);
}

#[test]
fn a_file_that_can_shrink_is_refused() {
    let unsealable = memfd(MFdFlags::empty(), 4096);
    assert!(matches!(Region::from_fd(unsealable), Err(RegionError::NotSealable)));

    let frozen = memfd(MFdFlags::MFD_ALLOW_SEALING, 4096);
    fcntl(&frozen, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
    assert!(matches!(Region::from_fd(frozen), Err(RegionError::NotSealable)));

    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    assert!(matches!(Region::from_fd(null.into()), Err(RegionError::NotMemory)));

    let plain = File::open(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(Region::from_fd(plain.into()), Err(RegionError::NotMemory)));
}

#[test]
fn bad_sizes_are_refused() {
    for bytes in [0, 1, 4095, 4097, REGION_BYTES_MAX + 4096, u64::MAX] {
        let made = Region::create("test", bytes, HugePages::Never);
        assert!(matches!(made, Err(RegionError::Size { .. })), "{bytes}");
    }
    for bytes in [0, 100, 4097] {
        let taken = Region::from_fd(memfd(MFdFlags::MFD_ALLOW_SEALING, bytes));
        assert!(matches!(taken, Err(RegionError::Size { .. })), "{bytes}");
    }
}

#[test]
fn memory_that_the_owner_made_read_only_is_not_writable() {
    let file = memfd(MFdFlags::MFD_ALLOW_SEALING, 4096);
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_FUTURE_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let region = Region::from_fd(file).unwrap();
    assert!(!region.writable());
    assert!(region.is_zero_page(0));

    let sealed = Region::create("test", 4096, HugePages::Never).unwrap();
    let path = format!("/proc/self/fd/{}", sealed.fd().as_raw_fd());
    let reading = Region::from_fd(File::open(path).unwrap().into()).unwrap();
    assert!(!reading.writable());
    sealed.store_u64(0, 3);
    assert_eq!(reading.load_u64(0), 3);
}

#[test]
#[should_panic(expected = "read-only")]
fn a_store_to_read_only_memory_is_caught() {
    let sealed = Region::create("test", 4096, HugePages::Never).unwrap();
    let path = format!("/proc/self/fd/{}", sealed.fd().as_raw_fd());
    Region::from_fd(File::open(path).unwrap().into()).unwrap().store_u64(0, 1);
}

#[test]
#[should_panic(expected = "outside the region")]
fn pages_outside_are_the_callers_bug() {
    let region = Region::create("test", 4096, HugePages::Never).unwrap();
    region.read_pages(u64::MAX, &mut [0; PAGE_BYTES]);
}

#[test]
#[should_panic(expected = "outside the region")]
fn a_word_past_the_end_is_the_callers_bug() {
    let region = Region::create("test", 4096, HugePages::Never).unwrap();
    let _ = region.load_u64(4096);
}

#[test]
fn huge_pages_are_used_or_refused_by_name() {
    let bytes = 2 * HUGE_PAGE_BYTES;
    match Region::create("test", bytes, HugePages::Require) {
        Ok(region) => {
            assert!(region.huge());
            region.store_u64(bytes - 8, 1);
        }
        Err(error) => {
            eprintln!("no free huge pages here ({error}); the refusal was tested instead");
            assert!(matches!(error, RegionError::HugePages { .. }));
        }
    }
    let region = Region::create("test", bytes, HugePages::Try).unwrap();
    region.store_u64(bytes - 8, 1);
    // Not a multiple of a huge page: small pages it is.
    assert!(!Region::create("test", 4096, HugePages::Try).unwrap().huge());
}

#[test]
fn reading_while_others_write_gives_whole_words() {
    let region = Arc::new(Region::create("test", 64 * 4096, HugePages::Never).unwrap());
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let region = Arc::clone(&region);
            thread::spawn(move || {
                for round in 0..200u64 {
                    let page = [(round % 255) as u8; PAGE_BYTES];
                    for index in 0..64 {
                        region.write_pages(index, &page);
                    }
                }
            })
        })
        .collect();
    let mut out = vec![0; 64 * PAGE_BYTES];
    while writers.iter().any(|w| !w.is_finished()) {
        region.read_pages(0, &mut out);
        for word in out.chunks_exact(8) {
            assert!(word.iter().all(|&byte| byte == word[0]), "a word was torn");
        }
    }
    for writer in writers {
        writer.join().unwrap();
    }
}
