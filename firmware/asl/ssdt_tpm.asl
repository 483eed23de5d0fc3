/*
 * The TPM and its physical presence interface: TCG ACPI Specification 1.3, TCG PC Client Physical Presence Interface
 * 1.30 revision 00.52, TCG Platform Reset Attack Mitigation 1.10 (memory overwrite request).
 *
 * The PPI page is laid out as edk2 (OvmfPkg/Include/IndustryStandard/QemuTpm.h) reads it. It is accessed byte by byte
 * through fields alone: Windows refuses DerefOf on a field in SystemMemory. Placeholders: register base, register
 * size, PPI page (twice), and, where TPM_INTERRUPT is defined, the interrupt; see dsdt.asl.
 */
DefinitionBlock ("", "SSDT", 2, "COFFER", "TPM2", 0x00000001)
{
    Device (\_SB.TPM)
    {
        Name (_HID, "MSFT0101")
        Name (_STR, Unicode ("TPM 2.0 Device"))
        Name (_UID, 0x01)
        Name (_STA, 0x0F)
        Name (_CRS, ResourceTemplate ()
        {
            Memory32Fixed (ReadWrite, 0x95D80000, 0x0119E000)
#ifdef TPM_INTERRUPT
            Interrupt (ResourceConsumer, Level, ActiveLow, Exclusive) { 0x95DA0000 }
#endif
        })

        OperationRegion (PPI, SystemMemory, 0x95D90000, 0x0400)
        Field (PPI, ByteAcc, NoLock, Preserve)
        {
            Offset (0x105),
            RESP,   32,     /* result of the last request */
            REQ,    32,     /* request that waits for the next boot */
            RQPA,   32,     /* its parameter */
            LAST,   32,     /* the last request that the firmware worked on */
            Offset (0x15A),
            MOR,    8       /* memory overwrite request */
        }

        /* What the firmware lets the guest do with an operation: 0 nothing, 1 firmware only, 2 blocked,
           3 after a person confirms it, 4 freely. One byte an operation from the page's start. */
        Method (PERM, 1, Serialized)
        {
            If (Arg0 > 0xFF)
            {
                Return (0x00)
            }
            OperationRegion (OPB, SystemMemory, 0x95D90000 + Arg0, 0x01)
            Field (OPB, ByteAcc, NoLock, Preserve)
            {
                OPF,    8
            }
            Return (OPF & 0x07)
        }

        /* Requests operation Arg0 with parameter Arg1; 0 accepted, 1 not implemented, 3 blocked. */
        Method (SUBM, 2, Serialized)
        {
            Switch (ToInteger (PERM (Arg0)))
            {
                Case (Package () { 0x03, 0x04 })
                {
                    REQ = Arg0
                    RQPA = Arg1
                    Return (0x00)
                }
                Case (0x02)
                {
                    Return (0x03)
                }
            }
            Return (0x01)
        }

        Method (_DSM, 4, Serialized)
        {
            /* Physical presence interface. */
            If (Arg0 == ToUUID ("3dddfaa6-361b-4eb4-a424-8d10089d1653"))
            {
                Switch (ToInteger (Arg2))
                {
                    /* Functions 0 to 8 exist. */
                    Case (0x00)
                    {
                        Return (Buffer () { 0xFF, 0x01 })
                    }
                    /* Version of the interface. */
                    Case (0x01)
                    {
                        Return ("1.3")
                    }
                    /* Submit a request; the older form knows 0, 1 and 2 (general failure). */
                    Case (0x02)
                    {
                        Local0 = SUBM (DerefOf (Arg3 [0x00]), 0x00)
                        If (Local0 == 0x03)
                        {
                            Local0 = 0x02
                        }
                        Return (Local0)
                    }
                    /* The request that waits. */
                    Case (0x03)
                    {
                        If (Arg1 >= 0x02)
                        {
                            Local0 = Package () { 0x00, 0x00, 0x00 }
                            Local0 [0x02] = ToInteger (RQPA)
                        }
                        Else
                        {
                            Local0 = Package () { 0x00, 0x00 }
                        }
                        Local0 [0x01] = ToInteger (REQ)
                        Return (Local0)
                    }
                    /* How to get to the firmware: reboot. */
                    Case (0x04)
                    {
                        Return (0x02)
                    }
                    /* The last request and its result. */
                    Case (0x05)
                    {
                        Local0 = Package () { 0x00, 0x00, 0x00 }
                        Local0 [0x01] = ToInteger (LAST)
                        Local0 [0x02] = ToInteger (RESP)
                        Return (Local0)
                    }
                    /* Preferred language: not implemented, as the specification asks. */
                    Case (0x06)
                    {
                        Return (0x03)
                    }
                    /* Submit a request with a parameter. */
                    Case (0x07)
                    {
                        Local0 = 0x00
                        If (SizeOf (Arg3) > 0x01)
                        {
                            Local0 = DerefOf (Arg3 [0x01])
                        }
                        Return (SUBM (DerefOf (Arg3 [0x00]), Local0))
                    }
                    /* May the guest request this operation? */
                    Case (0x08)
                    {
                        Return (PERM (DerefOf (Arg3 [0x00])))
                    }
                }
                Return (Buffer () { 0x00 })
            }

            /* Memory overwrite request. */
            If (Arg0 == ToUUID ("376054ed-cc13-4675-901c-4756d7f2d45d"))
            {
                Switch (ToInteger (Arg2))
                {
                    Case (0x00)
                    {
                        Return (Buffer () { 0x03 })
                    }
                    Case (0x01)
                    {
                        MOR = DerefOf (Arg3 [0x00])
                        Return (0x00)
                    }
                }
            }
            Return (Buffer () { 0x00 })
        }
    }
}
