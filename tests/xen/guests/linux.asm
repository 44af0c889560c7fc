; Starts a Linux kernel that already lies in memory (QEMU's generic loader put it there), with a single switch
; from real mode to long mode. GRUB switches back and forth for every 63 KB that it reads, and the emulator's
; nested SVM does not survive that every time.
;
; In memory: the kernel's program segments at their physical addresses (from 0x1000000), the initrd, and, read with
; this code by the boot sector, boot_params at 0x9000 (all but the memory map filled in by images.py) and the command
; line behind it.
bits 16
org 0x7e00
BOOT_PARAMS equ 0x9000
E820_COUNT  equ BOOT_PARAMS + 0x1e8
E820_TABLE  equ BOOT_PARAMS + 0x2d0
TABLES      equ 0x70000
KERNEL      equ 0x1000000

  xor ebx, ebx                  ; the memory map, from the BIOS
  mov di, E820_TABLE
next_region:
  mov eax, 0xe820
  mov edx, 0x534d4150
  mov ecx, 20
  int 0x15
  jc regions_done
  add di, 20
  inc byte [E820_COUNT]
  test ebx, ebx
  jnz next_region
regions_done:
  cli
  lgdt [gdt_pointer]
  mov eax, cr0
  or al, 1
  mov cr0, eax
  jmp dword 0x08:protected

bits 32
protected:
  mov ax, 0x10
  mov ds, ax
  mov es, ax
  mov ss, ax
  mov esp, 0x7c00
  mov edi, TABLES               ; identity map of the first GB, in 2 MB pages
  xor eax, eax
  mov ecx, 3 * 1024
  rep stosd
  mov dword [TABLES], TABLES + 0x1003
  mov dword [TABLES + 0x1000], TABLES + 0x2003
  mov edi, TABLES + 0x2000
  mov eax, 0x83
  mov ecx, 512
next_page:
  mov [edi], eax
  add eax, 0x200000
  add edi, 8
  loop next_page
  mov eax, cr4
  or eax, 0x20                  ; PAE
  mov cr4, eax
  mov eax, TABLES
  mov cr3, eax
  mov ecx, 0xc0000080           ; EFER.LME
  rdmsr
  or eax, 0x100
  wrmsr
  mov eax, cr0
  or eax, 0x80000000
  mov cr0, eax
  jmp 0x18:long_mode

bits 64
long_mode:
  mov esi, BOOT_PARAMS
  mov eax, KERNEL
  jmp rax

align 8
gdt:
  dq 0
  dq 0x00cf9a000000ffff         ; 0x08: 32-bit code
  dq 0x00cf92000000ffff         ; 0x10: data
  dq 0x00af9a000000ffff         ; 0x18: 64-bit code
gdt_pointer:
  dw gdt_pointer - gdt - 1
  dd gdt
times BOOT_PARAMS - 0x7e00 - ($ - $$) db 0
